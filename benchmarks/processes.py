"""Two processes with one thread each against one process with two threads: the same step on the same two cores.

A step is two micro-batches of rows x length tokens (teacher, quantized student, 0.1 task + 2 EAKLD + 0.1 AFD,
AdamW) in SmolLM2-135M's shape, random weights. `two`: a micro-batch in each of two processes under DDP over gloo,
gradients averaged. `one`: both micro-batches one after the other in process 0, while the other waits. They take
turns in the same two processes.

    python benchmarks/processes.py [model=smollm2_135m] [rows=2] [length=256] [rounds=5]

prints one JSON line: median seconds of a step, tokens per second, and the speed of `two` by that of `one`: the
median of the ratios round by round. Run it under the heap settings of train.py (`make bench` does).
"""

from __future__ import annotations

import json
import os
import platform
import socket
import statistics
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
from fake_quant import batch
from torch import Tensor, nn

from razor import cli
from razor.distiller import Distiller
from razor.models import make_student
from razor.optimizer import parameter_groups

OPTIONS = {"model": "smollm2_135m", "rows": 2, "length": 256, "rounds": 5}


class Step(nn.Module):
    """A student under its losses, as a module that DDP can wrap; the teacher is not part of it."""

    def __init__(self, student: Any, distiller: Distiller) -> None:
        super().__init__()
        self.student, self.objective = student, distiller.objective
        self._distill = distiller

    def forward(self, micro_batch: Any) -> Tensor:  # noqa: D102
        return self._distill.loss(micro_batch)[0]


def timed(step: nn.Module, optimizer: torch.optim.Optimizer, micro_batches: list[Any]) -> float:
    started = time.perf_counter()
    for micro_batch in micro_batches:
        (step(micro_batch) / len(micro_batches)).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)  # DDP's buckets are the gradients
    return time.perf_counter() - started


def work(rank: int, port: int, options: dict[str, Any]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    config = cli.composed("train", [f"model={options['model']}", "model.weights=random"])
    source = cli.model_source(config)
    teacher = source.load(torch.bfloat16)
    student = make_student(teacher, cli.build(config.quant).plan(source.skeleton()), torch.bfloat16)
    alone = Step(student, Distiller(cli.build(config.distill), student, teacher))
    shared = nn.parallel.DistributedDataParallel(alone, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(parameter_groups(alone, 1e-4, 0.01), fused=True)
    micro_batches = [batch(options["rows"], options["length"], source.config().vocab_size) for _ in range(2)]
    seconds: dict[str, list[float]] = {"two": [], "one": []}
    for turn in range(options["rounds"] + 1):
        torch.set_num_threads(1)
        dist.barrier()
        two = timed(shared, optimizer, micro_batches[rank : rank + 1])
        dist.barrier()
        torch.set_num_threads(2)
        one = timed(alone, optimizer, micro_batches) if rank == 0 else 0.0
        dist.barrier()
        if turn:  # the first warms up
            seconds["two"].append(two)
            seconds["one"].append(one)
    if rank == 0:
        say(options, seconds)
    dist.destroy_process_group()


def say(options: dict[str, Any], seconds: dict[str, list[float]]) -> None:
    tokens = 2 * options["rows"] * options["length"]
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    ratios = [one / two for one, two in zip(seconds["one"], seconds["two"], strict=True)]
    print(
        json.dumps(
            {
                "benchmark": "processes",
                **options,
                "seconds": {side: round(value, 3) for side, value in medians.items()},
                "tokens_per_second": {side: round(tokens / value, 1) for side, value in medians.items()},
                "two / one": round(statistics.median(ratios), 3),
                "all": {side: [round(t, 2) for t in times] for side, times in seconds.items()},
                "machine": platform.machine(),
                "torch": torch.__version__,
            }
        ),
        flush=True,
    )


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    options = {key: type(value)(given.pop(key, value)) for key, value in OPTIONS.items()}
    if given:
        sys.exit(f"Unknown option {min(given)}. Choices: {', '.join(OPTIONS)}.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(work, (port, options), nprocs=2)


if __name__ == "__main__":
    main(sys.argv[1:])
