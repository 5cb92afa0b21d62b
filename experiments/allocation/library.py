"""Bits of each matrix by AutoScheme of the package auto-round, in its own environment; knows nothing of Razor.

    python library.py FOLDER

reads FOLDER's `model/`, `text.json` and `options.json`, and writes `widths.json`: bits by the name of a linear
layer, the package's version, seconds. AutoScheme judges a matrix by the gradient of the loss times the change that
its rounding makes, and solves for a mean width. Nothing is rounded here.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound, AutoScheme
from auto_round.schemes import QuantizationScheme
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: Path) -> None:
    """Choose widths."""
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    schemes = [
        QuantizationScheme(bits=bits, group_size=options["group"], sym=True, data_type="int")
        for bits in options["bits"]
    ]
    text = {"dataset": str(folder / "text.json"), "nsamples": options["samples"], "seqlen": options["length"]}
    choice = AutoScheme(
        avg_bits=options["mean_bits"],
        options=schemes,
        ignore_scale_zp_bits=True,
        enable_torch_compile=False,
        low_gpu_mem_usage=False,
        low_cpu_mem_usage=False,
        **text,
    )
    begun = time.perf_counter()
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(folder / "model"),
        scheme=choice,
        iters=0,
        device_map="cpu",
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
        **text,
    )
    rounding.post_init()
    widths = {
        name: config["bits"] for name, config in rounding.layer_config.items() if config.get("bits", 16) < 16
    }
    told = {
        "library": f"auto-round {version('auto-round')}",
        "widths": widths,
        "seconds": time.perf_counter() - begun,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    (folder / "widths.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
