"""What a run will take, said before it starts: memory by part, disk, and time.

Everything follows from shapes: the models are built without numbers, and arithmetic does the rest (`memory`,
`losses`, `speed`); what a backward pass needs is asked of autograd (`saved`). So the estimate of a run on 64 GPUs
is made on a laptop. Measured against real peaks on a CPU it holds to 15 % (`docs/scaling.md`,
`benchmarks/estimate.py`); numbers for GPUs are arithmetic that nobody measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from razor.distill import ForwardKL, Objective
from razor.train.estimate import speed
from razor.train.estimate.case import Case
from razor.train.estimate.facts import Facts, Skeletons
from razor.train.estimate.memory import Memory, host_bytes, memory
from razor.train.estimate.speed import EFFICIENCY, flops_per_token

TOUCHED = 60_000_000
"""Bytes of libraries, kernels and their buffers that the first training step touches (measured on a tiny model)."""

GPU_PROCESS = 1_000_000_000
"""Context, cuBLAS workspaces and NCCL buffers on a GPU; the usual size, not measured here."""

GPU_PART = 0.94
"""Of a GPU's memory, what tensors can have: the allocator rounds sizes up and leaves holes. Not measured here."""

CHECKPOINTS = 3
"""On disk at most: the last, the one before, and the next while it is written."""


@dataclass(frozen=True)
class Rate:
    """How fast a process computes.

    Attributes:
        flops: operations a second.
        source: where the number is from, for people.
    """

    flops: float
    source: str


@dataclass(frozen=True)
class Estimate:
    """Needs of a run.

    Attributes:
        case, facts: what was estimated.
        held: memory of one process.
        limit: bytes that there are for it; None if nobody knows.
        rate: of one process; None if nobody knows.
        skeletons: its models, to ask about other cases of them.
    """

    case: Case
    facts: Facts
    held: Memory
    limit: int | None
    rate: Rate | None
    skeletons: Skeletons = field(repr=False)

    @property
    def memory(self) -> int:
        """Bytes of one process at its largest moment."""
        return self.held.peak

    @property
    def fits(self) -> bool | None:
        """Whether that is there; None if nobody knows."""
        return None if self.limit is None else self.memory <= self.limit

    @property
    def tokens_per_second(self) -> float | None:
        """Of text, in all processes together."""
        if self.rate is None:
            return None
        return self.case.processes * self.rate.flops / flops_per_token(self.case, self.facts)

    @property
    def seconds(self) -> float | None:
        """Of training alone."""
        rate = self.tokens_per_second
        return None if rate is None else self.case.total_tokens / rate

    @property
    def checkpoint(self) -> int:
        """Bytes of one checkpoint: latents and two moments, fp32."""
        return 12 * (self.facts.student.parameters + self.facts.learned)

    @property
    def disk(self) -> int:
        """Bytes of a run's folder at its largest: checkpoints, the packed model and another while it is written."""
        return CHECKPOINTS * self.checkpoint + 2 * self.facts.packed

    @property
    def host(self) -> int:
        """Bytes of its own memory that each machine with GPUs needs at least."""
        return host_bytes(self.case, self.facts)

    def warning(self) -> str | None:
        """One line if it will not fit, with what would help most."""
        if self.fits is not False or self.limit is None:
            return None
        found = helps(self)
        enough = [(words, other) for words, other in found if other.fits] or found[-1:]
        hint = "".join(f" {words} would take {other.memory / 1e9:.1f} GB." for words, other in enough[:1])
        return (
            f"It does not fit: about {self.memory / 1e9:.1f} GB of memory a process, and there are "
            f"{self.limit / 1e9:.1f} GB.{hint} The same words after 'razor estimate' say more."
        )


def estimate(
    case: Case, rate: Rate | None = None, limit: int | None = None, fixed: int | None = None
) -> Estimate:
    """Estimate a run.

    Args:
        case: the run.
        rate: how fast a process computes; None: by timing a matrix product, if the device is here.
        limit: bytes of memory for a process; None: what the device has, if it is here.
        fixed: bytes of a process without models; None: of this one, or the usual of a GPU.

    Raises:
        RazorError: losses that do not fit the models.
    """
    skeletons = Skeletons(case)
    facts = skeletons.facts(case)
    held = memory(case, facts, process_bytes(case.device) if fixed is None else fixed)
    return Estimate(
        case, facts, held, limit or memory_of(case), rate or measured_rate(case.device), skeletons
    )


def measured_rate(device: str) -> Rate | None:
    """From the speed of a large matrix product; None for a device that is not here."""
    if device == "cuda" and not torch.cuda.is_available():
        return None
    return Rate(
        EFFICIENCY * speed.matrix_speed(torch.device(device)), "half of a large matrix product's, timed now"
    )


def process_bytes(device: str) -> int:
    """Of a process before it has a model: what this one holds, its libraries loaded; or the usual of a GPU."""
    if device == "cuda":
        return GPU_PROCESS
    status = Path("/proc/self/status")
    if not status.is_file():  # not Linux
        return 500_000_000 + TOUCHED
    resident = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return 1024 * int(resident.split()[1]) + TOUCHED


def memory_of(case: Case) -> int | None:
    """Bytes for one process on this machine: of its GPU, or its part of the machine's memory; None if unknown."""
    if case.device == "cuda":
        return int(GPU_PART * torch.cuda.mem_get_info()[1]) if torch.cuda.is_available() else None
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup/memory.max")  # of a container
    if group.is_file() and (allowed := group.read_text().strip()).isdigit():
        total = min(total, int(allowed))
    return total // case.per_node


def helps(of: Estimate) -> list[tuple[str, Estimate]]:
    """What would make a run smaller, and how small: (words to add, estimate)."""
    case = of.case
    changes: dict[str, dict[str, Any]] = {}
    if not case.checkpointing and not case.image:  # few image classifiers can
        changes["trainer.gradient_checkpointing=true"] = {"checkpointing": True}
    if case.rows > 1:
        more = case.accumulate * case.rows
        changes[f"data.rows_per_batch=1 trainer.accumulate={more}"] = {"rows": 1, "accumulate": more}
    if case.taught and case.model.task == "text":
        kld = Objective({"kld": ForwardKL()}, {"kld": 1.0})
        changes["teacher=cached distill=kld"] = {"objective": kld, "cached": "sampled"}
    together = {key: value for change in changes.values() for key, value in change.items()}
    if case.strategy != "fsdp2" and case.processes > 1:
        changes["trainer=fsdp2"] = {"strategy": "fsdp2", "shard_teacher": True}
    if len(changes) > 1:
        changes[" ".join(changes)] = together | changes.get("trainer=fsdp2", {})
    found = [(words, _changed(of, change)) for words, change in changes.items()]
    if case.device == "cuda" and not any(other.fits for _, other in found):
        found += _more_gpus(of, {"checkpointing": True})
    return [(words, other) for words, other in found if other.memory < of.memory]


def _more_gpus(of: Estimate, change: dict[str, Any]) -> list[tuple[str, Estimate]]:
    """The fewest GPUs, up to 64, over which fsdp2 would fit."""
    for many in (2, 4, 8, 16, 32, 64):
        if many > of.case.processes:
            spread = {"strategy": "fsdp2", "shard_teacher": True, "processes": many, "nodes": -(-many // 8)}
            other = _changed(of, change | spread | {"accumulate": max(many, of.case.accumulate)})
            if other.fits:
                return [(f"trainer=fsdp2 processes={many} trainer.gradient_checkpointing=true", other)]
    return []


def _changed(of: Estimate, change: dict[str, Any]) -> Estimate:
    case = replace(of.case, **change)
    facts = of.skeletons.facts(case)
    held = memory(case, facts, of.held.moments["optimizer"]["process"])
    return replace(of, case=case, facts=facts, held=held)
