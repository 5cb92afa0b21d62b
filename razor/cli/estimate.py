"""`razor estimate`: what a run will take, from the words of a main job and where it would run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from razor.cli.config import build, composed, quantization
from razor.cli.teacher import teaching
from razor.errors import RazorError, did_you_mean

if TYPE_CHECKING:
    from razor.train.estimate.case import Case
    from razor.train.settings import TrainSettings

DEVICES = ("cpu", "cuda")
ANYWHERE = {"accelerator": "auto", "strategy": "single", "devices": 1, "nodes": 1, "shard_teacher": False}
"""Settings that every machine takes: what is asked about need not run here."""


def estimate(overrides: Sequence[str]) -> int:
    """`razor estimate`: what a run will take, in memory, on disk and in time."""
    from razor.train.estimate.needs import Rate
    from razor.train.estimate.needs import estimate as needs
    from razor.train.estimate.table import estimate_summary, estimate_text
    from razor.train.estimate.trial import calibrated
    from razor.train.run import quieten

    config = composed("estimate", overrides)
    limit, flops = (_positive(config, key) for key in ("memory", "flops"))
    if flops is not None and config.calibrate:
        raise RazorError("flops= and calibrate=true both say how fast it is: give one.")
    quieten()
    case, settings = case_from(config)
    limit = None if limit is None else int(limit * 1e9)
    found = needs(case, None if flops is None else Rate(flops, "as given"), limit)
    if config.calibrate:
        found = calibrated(found, settings)
    print(json.dumps(estimate_summary(found)) if config.json else estimate_text(found))
    return 0


def case_from(config: DictConfig) -> tuple[Case, TrainSettings]:
    """The run that a config describes, wherever it would run, and its settings for one process here.

    Raises:
        RazorError: values that do not go together.
    """
    from razor.train.estimate.case import case_of

    asked = config.trainer
    made = teaching(OmegaConf.merge(config, {"trainer": ANYWHERE}))  # type: ignore[arg-type]
    made.check_task()
    device = _device(config.device, asked.accelerator, made.settings.device.type)
    nodes = asked.nodes if config.nodes is None else config.nodes
    processes = nodes * (asked.devices or _gpus()) if config.processes is None else config.processes
    strategy = config.strategy or asked.strategy
    objective = build(config.distill)
    if made.cached is not None:
        objective.check_cached(made.cached.kept.kind)
    plan = quantization(config, find=False).plan(made.model.skeleton())
    case = case_of(made, plan, objective, config.data.rows_per_batch, build(config.evals))
    where = replace(case, device=device, strategy=strategy, processes=processes, nodes=nodes)
    shard = asked.shard_teacher or (strategy == "fsdp2" and asked.strategy != "fsdp2")
    return replace(where, accumulate=asked.accumulate or processes, shard_teacher=shard), made.settings


def _device(given: str | None, accelerator: str, here: str) -> str:
    if given is None:
        return {"gpu": "cuda", "cpu": "cpu"}.get(accelerator, here)
    if given not in DEVICES:
        raise RazorError(f"device={given}.{did_you_mean(str(given), DEVICES)}")
    return given


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _positive(config: DictConfig, key: str) -> float | None:
    value = config[key]
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not 0 < number < float("inf"):
        unit = {"memory": "GB for a process", "flops": "operations a second, like 400e12"}[key]
        raise RazorError(f"{key}={value} must be a number above 0: {unit}.")
    return number
