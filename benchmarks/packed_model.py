"""A packed model in Transformers against its 16-bit self: load time, memory of tensors, tokens a second.

The same weights four times: `dense`, the plain 16-bit model; and the packed folder with its weights held `decoded`,
as `packed` codes, and in PyTorch's `int4` kernel (docs/packed-format.md). Each lives in a process of its own, all
wait for their turn, so that no two compute at once; in a round each generates `tokens` tokens, greedily, after a
prompt of `prompt`.

    python benchmarks/packed_model.py [model=smollm2_135m] [quant=mixed_2p79] [weights=pretrained] [tokens=64]
        [prompt=32] [rounds=5] [threads=2]

prints one JSON line: medians, and ratios to `dense`, round by round. Memory is that of parameters, buffers and
decoded weights, after the last round. Run it under the heap settings of train.py (`make bench` does).
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peer.sides import machine, read_options, versions

OPTIONS = {
    "model": "smollm2_135m",
    "quant": "mixed_2p79",
    "weights": "pretrained",
    "tokens": 64,
    "prompt": 32,
    "rounds": 5,
    "threads": 2,
}
SIDES = ("dense", "decoded", "packed", "int4")


def serve(side: str, folder: str, options: dict[str, Any], line: Any) -> None:
    """Load one side, then answer each call with the seconds that its tokens took."""
    import torch
    from transformers import AutoModelForCausalLM

    import razor

    torch.set_num_threads(options["threads"])
    started = time.perf_counter()
    if side == "dense":
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/dense", dtype=torch.bfloat16)
    else:
        model = razor.load(f"{folder}/packed", side)[0]  # type: ignore[arg-type]
    line.send({"load": time.perf_counter() - started})
    ids = torch.arange(5, 5 + options["prompt"]).unsqueeze(0)
    asked = {"do_sample": False, "pad_token_id": 0}
    while tokens := line.recv():
        started = time.perf_counter()
        model.generate(input_ids=ids, max_new_tokens=1, min_new_tokens=1, **asked)
        prompt = time.perf_counter() - started
        started = time.perf_counter()
        model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, **asked)
        line.send({"prompt": prompt, "token": (time.perf_counter() - started - prompt) / (tokens - 1)})
    made = [m._decoded for m in model.modules() if getattr(m, "_decoded", None) is not None]
    tensors = {t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers(), *made)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    line.send({"tensors": sum(tensors.values()), "peak": peak})


def prepare(folder: Path, options: dict[str, Any]) -> None:
    """The packed folder and the 16-bit one, of the same model."""
    import torch

    from razor import cli

    sys.stdout = sys.stderr  # the line of JSON stands alone
    words = [f"model={options['model']}", f"model.weights={options['weights']}"]
    config = cli.composed("quantize", [*words, f"quant={options['quant']}", f"out={folder / 'packed'}"])
    cli.VERBS["quantize"]([*words, f"quant={options['quant']}", f"out={folder / 'packed'}"])
    cli.model_source(config).load(torch.bfloat16).save_pretrained(folder / "dense")


def main(words: list[str]) -> None:
    options = read_options(words, OPTIONS)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        maker = context.Process(target=prepare, args=(Path(folder), options))
        maker.start()
        maker.join()
        lines, found = {}, {side: {"prompt": [], "token": []} for side in SIDES}
        for side in SIDES:  # one after the other: loading is timed too
            lines[side], theirs = context.Pipe()
            context.Process(target=serve, args=(side, folder, options, theirs), daemon=True).start()
            found[side] |= lines[side].recv()
        for turn in range(options["rounds"] + 1):
            for side in SIDES:
                lines[side].send(options["tokens"] if turn else 4)
                times = lines[side].recv()
                if turn:  # the first warms up
                    for key, value in times.items():
                        found[side][key].append(value)
        for side in SIDES:
            lines[side].send(0)
            found[side] |= lines[side].recv()
    say(options, found)


def say(options: dict[str, Any], found: dict[str, dict[str, Any]]) -> None:
    dense = found["dense"]
    sides = {}
    for side, numbers in found.items():
        faster = [b / a for a, b in zip(numbers["token"], dense["token"], strict=True)]
        sides[side] = {
            "tokens_per_second": round(1 / statistics.median(numbers["token"]), 2),
            "speed / dense": round(statistics.median(faster), 3),
            "prompt_seconds": round(statistics.median(numbers["prompt"]), 3),
            "load_seconds": round(numbers["load"], 2),
            "tensors_MB": round(numbers["tensors"] / 1e6, 1),
            "tensors / dense": round(numbers["tensors"] / dense["tensors"], 3),
            "peak_MB": round(numbers["peak"] / 1e6),
            "all": [round(1 / t, 2) for t in numbers["token"]],
        }
    facts = machine(options["threads"]) | versions("torch", "transformers")
    print(json.dumps({"benchmark": "packed_model", **options, "sides": sides, "machine": facts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
