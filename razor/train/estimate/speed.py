"""How long a run takes: floating-point operations of its products, and how fast they go.

A product of a token with a matrix of n parameters is 2 n operations, and its backward pass 4 n. So a token costs

    6 (layers + head) of the student, 2 (layers + head) of a teacher that runs,
    8 layers + 6 head with gradient checkpointing, which runs the layers once more,
    and inside attention, of a model with queries `heads` wide in all: 2 length heads a layer and pass,
    half of the square of tokens being in the future; 3 passes for the student, 1 for the teacher.

Element-wise work and quantizing have no share in that, which is why the rate they reach is measured over whole
steps: by a few steps of the real shape on random weights, or told as a number. Where neither is there, a large
matrix product is timed and a training step taken to reach `EFFICIENCY` of it.

P processes are taken to do P times the work. What they wait for each other is left out.
"""

from __future__ import annotations

import time

import torch

from razor.train.estimate.case import Case
from razor.train.estimate.facts import Facts, Network

EFFICIENCY = 0.5
"""Part of the machine's matrix-product speed that a training step reaches, roughly; measured runs differ."""


def flops_per_token(case: Case, facts: Facts) -> int:
    """Operations of a training step for one token of text."""
    own = facts.student
    total = 6 * own.matrices + 6 * own.head + 3 * _attention(own, case.length)
    if case.checkpointing:
        total += 2 * own.matrices + _attention(own, case.length)
    if case.taught:
        total += 2 * facts.teacher.matrices + 2 * facts.teacher.head + _attention(facts.teacher, case.length)
    return total


def _attention(model: Network, length: int) -> int:
    return 2 * model.layers * model.heads * length


def matrix_speed(device: torch.device, size: int = 2048) -> float:
    """bf16 matrix-product speed of this device, FLOP/s, from about half a second of trying."""
    a = torch.randn(size, size, device=device).to(torch.bfloat16)
    best, until = 0.0, time.perf_counter() + 0.5
    while time.perf_counter() < until or not best:
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
