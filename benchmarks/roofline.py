"""How fast this machine multiplies matrices: the roof under which a training step works.

A step is nearly all matrix products, so its achieved FLOP/s over the best that one large product reaches on the
same machine, threads and dtype says how much of the time goes elsewhere.

Counting rule. A product of a token with a matrix of N parameters costs 2 N FLOP, and its backward pass 4 N. So a
step costs 6 N for each of the student's tokens and 2 N for each of the teacher's, N being the parameters of all
matrices that a token is multiplied with: every linear layer, and the output head (a tied embedding counts once; the
look-up is no product). Products inside attention, which have no parameters, are left out, and so is whatever is
computed twice: the share is of useful work.

    python benchmarks/roofline.py [dtypes=bfloat16,float32] [threads=0] [repeats=5] [size=2048]

prints one JSON line: for each dtype the best FLOP/s over a few shapes, and all of them. `threads=0`: all cores.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

import torch
from peer.sides import cores, environment, machine, read_options, versions

OPTIONS = {"dtypes": "bfloat16,float32", "threads": 0, "repeats": 5, "size": 2048}


def step_flops(matrices: int, student_tokens: int, teacher_tokens: int) -> int:
    """FLOP of a training step by the rule above; `matrices` is N."""
    return 6 * matrices * student_tokens + 2 * matrices * teacher_tokens


def peaks(threads: int, dtypes: str = str(OPTIONS["dtypes"]), size: int = 2048) -> dict[str, float]:
    """FLOP/s by dtype, measured in a process of its own under the settings that the sides of a benchmark get."""
    words = [f"threads={threads}", f"dtypes={dtypes}", f"size={size}"]
    done = subprocess.run(
        [sys.executable, __file__, *words], env=environment(threads), capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stderr}\nThe roofline could not be measured; see above.")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])["peak_flops"]
    return found


def products(dtype: torch.dtype, size: int, repeats: int) -> dict[str, float]:
    """Best FLOP/s of `repeats` at each shape: square, a layer's (many tokens, middling width), a head's (wide)."""
    found = {}
    for rows, inner, columns in (
        (size, size, size),
        (size // 2, size, 3 * size),
        (size // 2, size // 2, 8 * size),
    ):
        left, right = torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype)
        out = torch.empty(rows, columns, dtype=dtype)
        best = float("inf")
        for _ in range(repeats + 1):  # the first one loads the library and faults the memory in
            started = time.perf_counter()
            torch.mm(left, right.T, out=out)
            best = min(best, time.perf_counter() - started)
        found[f"{rows}x{inner}x{columns}"] = 2 * rows * inner * columns / best
    return found


def main(words: list[str]) -> dict[str, Any]:
    options = read_options(words, OPTIONS)
    threads = options["threads"] or cores()
    torch.set_num_threads(threads)
    measured = {
        name: products(getattr(torch, name), options["size"], options["repeats"])
        for name in options["dtypes"].split(",")
    }
    return {
        "benchmark": "roofline",
        **options,
        "peak_flops": {name: max(shapes.values()) for name, shapes in measured.items()},
        "by_shape": measured,
        "machine": machine(threads),
        "versions": versions("torch"),
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
