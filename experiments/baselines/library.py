"""AWQ and AutoRound by the package auto-round, in its own environment; knows nothing of Razor.

    python library.py FOLDER

reads FOLDER's `model/`, `rows.safetensors` and `options.json`, and writes `weights.safetensors`, the decoder's
parameters as the quantized model computes with them, in 16 bits, and `told.json`. Rows are given as the token ids
that they are; the package reads a row as one text.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from auto_round import AutoRound
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(folder: Path) -> None:
    """Round the decoder's linear weights."""
    options: dict[str, Any] = json.loads((folder / "options.json").read_text())
    rows = load_file(folder / "rows.safetensors")
    samples = [
        {"input_ids": ids[None], "attention_mask": mask[None]}
        for ids, mask in zip(rows["input_ids"], rows["attention_mask"], strict=True)
    ]
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    begun, length = time.perf_counter(), rows["input_ids"].shape[1]
    rounding = AutoRound(
        model,
        AutoTokenizer.from_pretrained(folder / "model"),
        scheme={"bits": options["bits"], "group_size": options["group"], "sym": True, "data_type": "int"},
        dataset=samples,
        nsamples=len(samples),
        seqlen=length,
        batch_size=8,
        seed=options["seed"],
        device_map="cpu",
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
        alg_configs="awq" if options["method"] == "awq" else "auto_round",
        **({} if options["method"] == "awq" else {"iters": options["iters"]}),
    )
    found, layers = rounding.quantize()
    state = {name: weight for name, weight in found.state_dict().items() if name in before}
    missing = sorted(set(before) - set(state))
    changed = sorted(name for name, weight in state.items() if not torch.equal(weight, before[name]))
    linear = [name for name in before if name.endswith("_proj.weight")]
    if missing or set(linear) - set(changed):
        sys.exit(
            f"auto-round left weights as they were: {(missing or sorted(set(linear) - set(changed)))[:3]}"
        )
    state = {
        name: weight.to(torch.bfloat16).contiguous().clone()
        for name, weight in state.items()
        if name in changed
    }
    save_file(state, folder / "weights.safetensors")
    told = {
        "library": f"auto-round {version('auto-round')}",
        "settings": options | {"rows": len(samples), "length": length, "sym": True},
        "changed": len(changed),
        "other_than_linear": [name for name in changed if name not in linear][:4],
        "layers": len(layers),
        "seconds": time.perf_counter() - begun,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    (folder / "told.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
