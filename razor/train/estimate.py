"""What a run will take, said before it starts: memory by part, and time from a short probe of the machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from razor.distill.pieces import chunk_bytes
from razor.models import ModelSource

EFFICIENCY = 0.5
"""Part of the machine's matrix-product speed that a training step reaches, roughly; measured runs differ."""


@dataclass(frozen=True)
class Estimate:
    """Rough needs of a run.

    Attributes:
        memory: bytes of models, optimizer, activations and one chunk of the loss.
        seconds: of training alone.
        checkpoint: bytes of one checkpoint.
    """

    memory: int
    seconds: float
    checkpoint: int


def estimate(
    source: ModelSource, tokens_per_batch: int, tokens: int, teacher: ModelSource | None, device: torch.device
) -> Estimate:
    """Estimate from shapes: latents, gradients and two Adam moments in fp32, teacher and weights in 16 bits.

    Args:
        source: the model.
        tokens_per_batch: tokens in a micro-batch.
        tokens: tokens of the whole run.
        teacher: the model that runs beside it; None if none does, as with cached targets.
        device: where it runs.
    """
    config, skeleton = source.config(), source.skeleton()
    parameters = sum(p.numel() for p in skeleton.parameters())
    beside = 0
    if teacher is not None:
        model = skeleton if teacher is source else teacher.skeleton()
        beside = sum(p.numel() for p in model.parameters())
    matrices = parameters * (16 + 2) + 2 * beside
    width, inner = config.hidden_size, getattr(config, "intermediate_size", 4 * config.hidden_size)
    # a layer keeps about ten tensors of the hidden and six of the inner width for backward, half of them fp32
    activations = tokens_per_batch * config.num_hidden_layers * (10 * width + 6 * inner) * 3
    loss = 4 * min(chunk_bytes(device.type, 2), 2 * tokens_per_batch * config.vocab_size)
    flops = (6 * parameters + 2 * beside) * tokens
    seconds = flops / (EFFICIENCY * matrix_speed(device))
    return Estimate(matrices + activations + loss, seconds, 12 * parameters)


def matrix_speed(device: torch.device, size: int = 2048) -> float:
    """bf16 matrix-product speed of this device, FLOP/s, from about half a second of trying."""
    a = torch.randn(size, size, device=device).to(torch.bfloat16)
    best, until = 0.0, time.perf_counter() + 0.5
    while time.perf_counter() < until or not best:
        start = time.perf_counter()
        float((a @ a)[0, 0])  # reading a number waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
