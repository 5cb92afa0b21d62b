"""Products of bfloat16 matrices on this CPU: torch's own beside `razor.half_products`, and beside fp32.

A round: each side in a process of its own, one after the other, multiplies `rows` inputs by the seven matrices of
a decoder layer of SmolLM2-135M, forward and backward. With instructions for bfloat16 both sides are torch's.

    python benchmarks/half_products.py [rows=512] [rounds=5] [threads=1]

prints one JSON line: median seconds of a layer on each side, and the medians of the ratios taken round by round.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time

OPTIONS = {"rows": 512, "rounds": 5, "threads": 1}
SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
SIDES = {"torch": ("bfloat16", "0"), "razor": ("bfloat16", "1"), "fp32": ("float32", "0")}
REPEATS = 3


def layer(dtype: str, rows: int, threads: int) -> dict[str, object]:
    """Seconds of a layer in this process, the median of some."""
    import torch
    from torch.nn import functional

    import razor.half_products

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    weights = [torch.randn(shape).to(kind).requires_grad_() for shape in SHAPES]
    inputs = [torch.randn(rows, columns).to(kind).requires_grad_() for _, columns in SHAPES]
    taken = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        for x, weight in zip(inputs, weights, strict=True):
            functional.linear(x, weight).sum().backward()
        taken.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(taken[1:]),
        "replaced": razor.half_products.install(),
        "slow": razor.half_products.slow(),
        "torch": torch.__version__,
    }


def child(side: str, options: dict[str, int]) -> dict[str, object]:
    dtype, switch = SIDES[side]
    words = ["side", dtype, str(options["rows"]), str(options["threads"])]
    environment = {**os.environ, "RAZOR_HALF_PRODUCTS": switch, "OMP_NUM_THREADS": str(options["threads"])}
    done = subprocess.run(
        [sys.executable, __file__, *words], env=environment, capture_output=True, check=True
    )
    return json.loads(done.stdout)


def main(words: list[str]) -> None:
    if words[:1] == ["side"]:
        print(json.dumps(layer(words[1], int(words[2]), int(words[3]))))
        return
    given = dict(word.split("=", 1) for word in words)
    options = {key: int(given.pop(key, value)) for key, value in OPTIONS.items()}
    if given:
        sys.exit(f"Unknown option {min(given)}. Choices: {', '.join(OPTIONS)}.")
    rounds = [{side: child(side, options) for side in SIDES} for _ in range(options["rounds"])]
    seconds = {side: [one[side]["seconds"] for one in rounds] for side in SIDES}
    told = {
        "benchmark": "half_products",
        **options,
        "seconds": {side: statistics.median(times) for side, times in seconds.items()},
        "torch / razor": statistics.median(
            t / r for t, r in zip(seconds["torch"], seconds["razor"], strict=True)
        ),
        "razor / fp32": statistics.median(
            r / f for r, f in zip(seconds["razor"], seconds["fp32"], strict=True)
        ),
        "replaced": rounds[0]["razor"]["replaced"],
        "all": seconds,
        "machine": platform.machine(),
        "torch": rounds[0]["razor"]["torch"],
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1:])
