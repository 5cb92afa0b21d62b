"""Packing a model and reading it back, in seconds and in memory, against plain files of the same weights.

The weights are those of Qwen3-0.6B in shape, random, in bf16. They are packed one after the other, as they would
be while a model is saved:

* `packed`: encode -> pack -> one safetensors file; and file -> unpack -> decode to bf16;
* `plain`: the bf16 weights to one safetensors file; and back into memory.

    python benchmarks/packing.py [model=qwen3_0p6b] [quant=mixed_2p79] [layers=0] [repeats=5] [threads=1]

prints one JSON line: median seconds of each side, which take turns in one process, and their ratios; the peak
memory of processes that do one side once (whole process, interpreter and torch included) beside the bytes of the
model in 16 bits; and that of a student in training, with its fp32 weights, while it is saved. With `layers=4`
times are those of the first four layers; memory is always that of the whole model. Nothing is flushed to the disk
on either side. Run it under the heap settings of train.py; both sides get the same.
"""

from __future__ import annotations

import json
import math
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from razor.quant import Format

OPTIONS = {"model": "qwen3_0p6b", "quant": "mixed_2p79", "layers": 0, "repeats": 5, "threads": 1}


class Weight(NamedTuple):
    """A parameter: its name, its shape as its format sees it, and the format's description."""

    name: str
    shape: tuple[int, ...]
    spec: dict[str, Any]

    @property
    def format(self) -> Format:
        """What it is stored in."""
        return Format.from_spec(self.spec)

    def random(self) -> Tensor:
        """A weight in 16 bits."""
        return torch.empty(self.shape, dtype=torch.bfloat16).normal_(0, 0.02)


def weights_of(model: str, quant: str) -> list[Weight]:
    """Every stored parameter of a model under a recipe."""
    from razor import cli
    from razor.quant.size import stored_parameters

    config = cli.composed("size", [f"model={model}", f"quant={quant}"])
    skeleton = cli.model_source(config).skeleton()
    plan = cli.build(config.quant).plan(skeleton)
    return [Weight(p.name, p.matrix, p.format.spec()) for p in stored_parameters(skeleton, plan)]


def first_layers(weights: list[Weight], layers: int) -> list[Weight]:
    """Those of the first layers; all for 0."""
    names = {f".{layer}." for layer in range(layers)}
    return [w for w in weights if not layers or any(name in w.name for name in names)]


def pack(weights: list[Weight], tensor_of: Callable[[Weight], Tensor], path: Path) -> dict[str, float]:
    """Weights -> packed file; seconds of each step."""
    packed: dict[str, Tensor] = {}
    spent = {"encode": 0.0, "pack": 0.0, "write": 0.0}
    for weight in weights:
        format, tensor = weight.format, tensor_of(weight)
        with clock(spent, "encode"):
            codes = format.encode(tensor)
        with clock(spent, "pack"):
            packed |= {f"{weight.name}.{key}": part for key, part in format.pack(codes).items()}
    with clock(spent, "write"):
        save_file(packed, path)
    return spent


def unpack(weights: list[Weight], path: Path) -> dict[str, float]:
    """Packed file -> bf16 model; seconds of each step."""
    model: dict[str, Tensor] = {}
    spent = {"read": 0.0, "unpack": 0.0, "decode": 0.0}
    with clock(spent, "read"):
        packed = load_file(path)
    for weight in weights:
        format = weight.format
        parts = {key: packed[f"{weight.name}.{key}"] for key in format.packed_layout(weight.shape)}
        with clock(spent, "unpack"):
            codes = format.unpack(parts, weight.shape)
        with clock(spent, "decode"):
            model[weight.name] = format.decode(codes).to(torch.bfloat16)
    return spent


def save_plain(weights: list[Weight], tensor_of: Callable[[Weight], Tensor], path: Path) -> dict[str, float]:
    """Weights -> plain bf16 file; its seconds."""
    tensors, spent = {weight.name: tensor_of(weight) for weight in weights}, {}
    with clock(spent, "save_plain"):
        save_file(tensors, path)
    return spent


def load_plain(weights: list[Weight], path: Path) -> dict[str, float]:
    """Plain file -> bf16 model; its seconds."""
    spent: dict[str, float] = {}
    with clock(spent, "load_plain"):
        mapped = load_file(path)
        model = {weight.name: mapped.pop(weight.name).clone() for weight in weights}  # mapped is not yet read
    assert len(model) == len(weights)
    return spent


@contextmanager
def clock(spent: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[name] = spent.get(name, 0.0) + time.perf_counter() - started


def times(weights: list[Weight], repeats: int, threads: int, folder: Path) -> dict[str, float]:
    """Median seconds of every step, sides in turn; the first round warms up."""
    torch.set_num_threads(threads)
    made = {weight.name: weight.random() for weight in weights}
    rounds = [
        pack(weights, lambda weight: made[weight.name], folder / "packed")
        | save_plain(weights, lambda weight: made[weight.name], folder / "plain")
        | unpack(weights, folder / "packed")
        | load_plain(weights, folder / "plain")
        for _ in range(repeats + 1)
    ]
    return {name: statistics.median(spent[name] for spent in rounds[1:]) for name in rounds[0]}


def peak(side: str, weights: list[Weight], threads: int, folder: Path) -> int:
    """Most bytes of memory that this process, made for it, ever had while it did one side once."""
    torch.set_num_threads(threads)
    if side == "pack":
        pack(weights, Weight.random, folder / "packed")
    elif side == "unpack":
        unpack(weights, folder / "packed")
    elif side == "save_plain":
        save_plain(weights, Weight.random, folder / "plain")
    else:
        load_plain(weights, folder / "plain")
    return highest_memory()


def student_peak(model: str, quant: str, threads: int, folder: Path) -> dict[str, int]:
    """Memory of a process that holds a student in training (fp32 weights), before and while `save_packed` runs."""
    from razor import cli
    from razor.export.packed import save_packed
    from razor.models import make_student

    torch.set_num_threads(threads)
    config = cli.composed("size", [f"model={model}", f"quant={quant}", "model.weights=random"])
    source = cli.model_source(config)
    plan = cli.build(config.quant).plan(source.skeleton())
    student = make_student(source.load(torch.bfloat16), plan, torch.bfloat16)
    before = highest_memory(start_again=True)
    save_packed(student, plan, source.tokenizer(), torch.bfloat16, folder / "student")
    return {"before": before, "while_saving": highest_memory()}


def highest_memory(start_again: bool = False) -> int:
    """Most bytes this process ever had or, where the system can, since it was last told to start again."""
    status = Path("/proc/self/status")
    if status.is_file():  # resource's own figure would begin with that of the process before exec
        if start_again:
            Path("/proc/self/clear_refs").write_text("5")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text()).group(1))  # type: ignore[union-attr]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def alone(job: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(job, *arguments).result()


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    options: dict[str, Any] = {key: type(value)(given.pop(key, value)) for key, value in OPTIONS.items()}
    if given:
        sys.exit(f"Unknown option {min(given)}. Choices: {', '.join(OPTIONS)}.")
    threads, repeats = options["threads"], options["repeats"]
    weights = alone(weights_of, options["model"], options["quant"])
    timed = first_layers(weights, options["layers"])
    with tempfile.TemporaryDirectory() as folder:
        memory = {
            side: alone(peak, side, weights, threads, Path(folder))
            for side in ("pack", "unpack", "save_plain", "load_plain")
        }
        student = alone(student_peak, options["model"], options["quant"], threads, Path(folder))
        packed_bytes = (Path(folder) / "packed").stat().st_size
        seconds = alone(times, timed, repeats, threads, Path(folder))
    sides = {
        "pack": sum(seconds[name] for name in ("encode", "pack", "write")),
        "save_plain": seconds["save_plain"],
        "unpack": sum(seconds[name] for name in ("read", "unpack", "decode")),
        "load_plain": seconds["load_plain"],
    }
    plain_bytes = 2 * sum(math.prod(weight.shape) for weight in weights)
    result = options | {
        "weights_timed": sum(math.prod(weight.shape) for weight in timed),
        "seconds": {name: round(value, 4) for name, value in sides.items()},
        "pack_vs_save_plain": round(sides["pack"] / sides["save_plain"], 3),
        "unpack_vs_load_plain": round(sides["unpack"] / sides["load_plain"], 3),
        "seconds_by_step": {name: round(value, 4) for name, value in seconds.items()},
        "bytes_16bit": plain_bytes,
        "bytes_packed": packed_bytes,
        "peak_bytes": memory,
        "peak_vs_16bit": {side: round(value / plain_bytes, 3) for side, value in memory.items()},
        "student_fp32_bytes": 2 * plain_bytes,
        "student_peak_bytes": student,
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
