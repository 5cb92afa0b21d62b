"""A run in several processes, seen from one of them.

Razor starts nothing by itself: torchrun (or whoever starts the processes) says in the environment which of how
many this one is, and torch.distributed lets them talk. What a program has to ask is little: who am I, wait until
the first has done it, and what do the others say. Alone, every answer is the trivial one, so nobody asks twice.

What is prepared once (text that a teacher writes, a converted model) goes through `first`, which lets process 0
work while the others wait, and then lets them find what it left. Exchanges go over gloo, on the CPU, also where
gradients travel by NCCL.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

PATIENCE = timedelta(hours=12)
"""How long processes wait for each other: as long as one of them may write text or score."""

T = TypeVar("T")


def started() -> bool:
    """Whether torchrun (or its like) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank() -> int:
    """Number of this process, from 0; before `join` too."""
    return int(os.environ["RANK"]) if started() else 0


def world() -> int:
    """Number of processes; before `join` too."""
    return int(os.environ["WORLD_SIZE"]) if started() else 1


def local_world() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world())) if started() else 1


def join(device: str = "cpu") -> None:
    """Meet the other processes; does nothing if there are none, or they have met.

    Args:
        device: "cuda": each takes the GPU of its number on this machine.
    """
    import torch

    if not started() or _together() is not None:
        return
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=PATIENCE)


def wait() -> None:
    """Until every process has come here."""
    totals([0.0])  # a barrier of NCCL would hold a GPU


@contextmanager
def first() -> Iterator[None]:
    """Process 0 goes through the block before all the others do."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


def gathered(value: T) -> list[T]:
    """What every process has, in their order; of anything that can be pickled."""
    if (dist := _together()) is None:
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def anywhere(flag: bool) -> bool:
    """Whether any process says yes."""
    return totals([float(flag)])[0] > 0


def totals(numbers: Sequence[float]) -> list[float]:
    """Sums over the processes, place by place, in fp64."""
    if (dist := _together()) is None:
        return list(numbers)
    import torch

    sums = torch.tensor(numbers, dtype=torch.float64)
    dist.all_reduce(sums)
    return sums.tolist()


def _together() -> Any:
    """torch.distributed, once the processes have met; who has not imported it has not met anybody."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
