"""A few real micro-batches of a case, on random weights: nothing has to be downloaded to time them."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path

import torch

from razor.distill import Batch, ImageBatch, MediaBatch, Samples, Targets
from razor.errors import RazorError
from razor.models import ModelSource, RandomModel, make_student
from razor.models.task import outputs_of
from razor.train.budget import OVERHEAD, TRIED, seconds_per_batch
from razor.train.estimate.case import Case
from razor.train.estimate.needs import Estimate, Rate, estimate
from razor.train.estimate.speed import flops_per_token
from razor.train.module import DistillModule
from razor.train.settings import TrainSettings

FEW = 50
"""Targets of a token, where they come from a cache."""


def calibrated(of: Estimate, settings: TrainSettings) -> Estimate:
    """The estimate with the rate of a few micro-batches of its shape, timed here; as it was if they do not fit.

    Raises:
        RazorError: its device is not here.
    """
    case, here = of.case, settings.device
    if case.device != here.type:
        raise RazorError(
            f"calibrate=true times micro-batches on {case.device}, and here is {here.type}: give flops= instead."
        )
    alone = replace(case, strategy="single", processes=1, nodes=1, accumulate=1)
    needed, free = estimate(alone, of.rate, of.limit).memory, available(here)
    if free is not None and needed > free:
        assert of.rate is not None
        reason = f"{of.rate.source}, since {needed / 1e9:.1f} GB for a trial are not free here"
        return replace(of, rate=Rate(of.rate.flops, reason))
    batches = [batch_of(case) for _ in range(TRIED)]
    seconds = OVERHEAD * seconds_per_batch(trial(case, settings, TRIED), batches, here)  # type: ignore[arg-type]
    rate = flops_per_token(case, of.facts) * case.tokens / seconds
    return replace(of, rate=Rate(rate, f"{TRIED} micro-batches of this shape on random weights, timed now"))


def trial(case: Case, settings: TrainSettings, steps: int) -> DistillModule:
    """What a run of this case would train, with random weights."""
    model = random_model(case.model).load(case.dtype)
    student, teacher = make_student(model, case.plan, case.dtype), None
    if case.taught:
        teacher = model if case.teacher is case.model else random_model(case.teacher).load(case.dtype)
    return DistillModule(student, teacher, case.objective, settings, steps, case.cached)


def random_model(source: ModelSource) -> RandomModel:
    """Random weights in a model's architecture."""
    config = source.config()
    return RandomModel(
        source.name, source.architecture or config.to_dict() | {"model_type": config.model_type}
    )


def batch_of(case: Case) -> Samples:
    """A micro-batch of the case's shape."""
    outputs = outputs_of(case.model.config())
    if case.image:
        return ImageBatch.of(torch.randn(case.rows, *case.image), torch.randint(0, outputs, (case.rows,)))
    batch = random_batch(case.rows, case.length, outputs, case.cached)
    if case.model.task == "media":  # text alone: its towers have nothing to read
        given = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return MediaBatch(**given, kinds=torch.zeros_like(batch.input_ids), media={})
    return batch


def random_batch(rows: int, length: int, vocabulary: int, cached: str | None = None) -> Batch:
    """Rows of one document each, every token with a loss; with cached targets of a kind if asked."""
    ids, labels = (torch.randint(0, vocabulary, (rows, length)) for _ in range(2))
    positions = torch.arange(length).repeat(rows, 1)
    batch = Batch(ids, labels, positions, torch.arange(rows).unsqueeze(1).repeat(1, length))
    return (
        batch if cached is None else replace(batch, targets=random_targets(rows * length, vocabulary, cached))
    )


def random_targets(tokens: int, vocabulary: int, kind: str) -> Targets:
    """Of a teacher that finds a few tokens equally likely, different ones for each token of text."""
    few = min(FEW, vocabulary - 1)
    step, ones = vocabulary // few, torch.ones(tokens)
    chosen = torch.randint(0, step, (tokens, few)) + step * torch.arange(few)
    if kind == "sampled":
        return Targets("sampled", chosen, torch.full((tokens, few), 1 / few), None, ones, ones / 10)
    logp = torch.full((tokens, few + 1), -math.log(few + 1))  # the tail is as likely as any of them
    return Targets("topk", chosen, logp[:, 1:].contiguous(), logp[:, 0].contiguous(), ones, ones / 10)


def available(device: torch.device) -> int | None:
    """Bytes of memory that are free on a device here; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    info = Path("/proc/meminfo")
    if not info.is_file():
        return None
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable:"))
    return 1024 * int(line.split()[1])
