"""What a run is made of, and everything that can be wrong with it.

A `Job` arrives already built from its config. `check` finds what does not fit, a group, a length, a missing
package, a full disk, from shapes alone and before anything heavy runs, and says what the run will take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger

from razor.data.sources.hub_benchmarks import said_of
from razor.distill import Objective
from razor.errors import RazorError
from razor.evals import Benchmark, Classification
from razor.export.exporter import Exporter, check_target
from razor.models import ModelSource, shape_of
from razor.quant import ModelSize, Plan, measure
from razor.recipe import PlanFile, QuantRecipe, Recipe
from razor.start import GPTQ
from razor.storage import EXPORTS, require_space
from razor.train.callbacks import check_callbacks
from razor.train.estimate.case import case_of
from razor.train.estimate.needs import Estimate, estimate
from razor.train.kind import check_kind
from razor.train.settings import TrainSettings
from razor.train.teaching import Teaching

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Job:
    """Everything a run is made of, already built (see conf/train.yaml)."""

    folder: Path
    teaching: Teaching
    model_note: str | None
    recipe: QuantRecipe | PlanFile
    objective: Objective
    rows_per_batch: int
    benchmark: Benchmark | Classification
    loggers: Mapping[str, Callable[..., Logger]]
    callbacks: Mapping[str, Callback]
    seed: int
    config: dict[str, Any]
    about: Mapping[str, str | None]
    exporters: Mapping[str, Exporter]
    start: GPTQ | None = None

    @property
    def model(self) -> ModelSource:
        """What becomes the student."""
        return self.teaching.model

    @property
    def settings(self) -> TrainSettings:
        """Optimizer, schedule, budget and device."""
        return self.teaching.settings


@dataclass
class Prepared:
    """A job that was checked: its plan, its size and what it will take."""

    job: Job
    plan: Plan
    size: ModelSize
    needs: Estimate

    @property
    def recipe(self) -> Recipe:
        """What this run does to the model, to be given to another; where the formats follow no recipe, the plan."""
        job = self.job
        quant = job.recipe if isinstance(job.recipe, QuantRecipe) else PlanFile(job.recipe.name, self.plan)
        return Recipe(job.recipe.name, quant, job.objective, job.settings.compute_dtype)  # type: ignore[arg-type]

    def __str__(self) -> str:
        job, total = self.job, self.size.total
        per_batch = job.rows_per_batch * job.teaching.sequence_length
        tokens, unit = (
            job.settings.max_steps * job.settings.micro_batches * per_batch,
            job.teaching.source.unit,
        )
        minutes = "" if self.needs.seconds is None else f", about {self.needs.seconds / 60:.0f} min"
        warning = self.needs.warning()
        note = f" ({job.model_note})" if job.model_note else ""
        towers = ", passes of towers left out" if self.size.towers else ""
        budget = (
            f"{job.settings.max_minutes:g} minutes of training"
            if job.settings.max_minutes
            else f"{job.settings.max_steps} steps, up to {tokens:,} {unit}{minutes}"
        )
        objective = ", ".join(f"{weight} {name}" for name, weight in job.objective.weights.items())
        return "\n".join(
            [
                f"model    {job.model.name}, {total.parameters / 1e6:.1f} M parameters{note}",
                f"student  {job.recipe.name}: {job.recipe.w_a_kv}, {total.bits_per_weight:.2f} bits per weight, "
                f"ratio {total.ratio_paper:.2f} ({total.ratio_disk:.2f} on disk, {total.bytes_disk / 1e6:.1f} MB)",
                *([] if job.start is None else [f"start    {job.start}"]),
                *_teacher_line(job.teaching),
                f"losses   {objective}",
                *_text_line(job.teaching),
                f"budget   {budget} of training on {_processes(job.settings)}, "
                f"{self.needs.memory / 1e9:.1f} GB of memory (estimates{towers})",
                *([] if warning is None else [f"warning  {warning}"]),
                f"folder   {job.folder}",
            ]
        )


@dataclass(frozen=True)
class Training:
    """What training did.

    Attributes:
        steps: optimizer steps done since the run began.
        interrupted: whether somebody asked to stop.
        seconds: of training, in this process.
        tokens: of text seen since the run began, in all processes.
        speed: tokens a second in this process's time; None if nothing was left to train.
    """

    steps: int
    interrupted: bool
    seconds: float
    tokens: int
    speed: float | None


def check(job: Job) -> Prepared:
    """Find everything that can be wrong before anything heavy runs."""
    teaching = job.teaching
    for key, value in (("held_out", teaching.held_out), ("rows_per_batch", job.rows_per_batch)):
        if value < 1:
            raise RazorError(f"data.{key}={value} must be at least 1.")
    teaching.check()
    skeleton = job.model.skeleton()
    check_kind(job, skeleton)
    teaching.source.check_rows(skeleton.config, teaching.sequence_length, teaching.longest_text)
    plan = job.recipe.plan(skeleton)
    if job.start is not None:
        job.start.check(skeleton, plan)
    _check_losses(job, skeleton)
    for exporter in job.exporters.values():
        check_target(job.folder / EXPORTS / exporter.name, exporter.name)
    tokenizer = job.model.tokenizer()
    for exporter in job.exporters.values():
        exporter.check(plan, skeleton.config, tokenizer)
    job.benchmark.prepare(tokenizer)
    steps = None if job.settings.max_minutes else job.settings.max_steps
    taught = job.objective.needs_teacher and teaching.cached is None
    check_callbacks(job.callbacks, skeleton, plan, taught, steps, job.settings.processes)
    if job.benchmark.tasks and (job.benchmark.limit or job.settings.processes) < job.settings.processes:
        raise RazorError(
            f"evals.limit={job.benchmark.limit} rows cannot be dealt to {job.settings.processes} processes: "
            "one row each at least, or evals=none."
        )
    needs = estimate(case_of(teaching, plan, job.objective, job.rows_per_batch, job.benchmark))
    require_space(job.folder, needs.disk, "this run")
    return Prepared(job, plan, measure(skeleton, plan), needs)


def _check_losses(job: Job, skeleton: PreTrainedModel) -> None:
    """That the losses fit the two models, or the cache in place of one; and that there may be such a cache."""
    own, teaching = shape_of(skeleton), job.teaching
    if teaching.cached is None:
        job.objective.fit(own, shape_of(teaching.teacher.skeleton()) if teaching.another else own)
        return
    if not job.objective.needs_teacher:
        raise RazorError("teacher=cached, but none of the losses looks at a teacher: leave it out.")
    job.objective.check_cached(teaching.cached.kept.kind)
    job.objective.fit(own, None)
    teaching.check_cache()


def _processes(settings: TrainSettings) -> str:
    device, count = settings.device.type, settings.processes
    return device if settings.strategy == "single" else f"{count} {device} processes ({settings.strategy})"


def _text_line(teaching: Teaching) -> list[str]:
    benchmarks = teaching.source.benchmarks
    return [] if benchmarks is None else [f"text     {said_of(benchmarks)}"]


def _teacher_line(teaching: Teaching) -> list[str]:
    if teaching.cached is not None:
        kept = " ".join(f"{key}={value}" for key, value in teaching.cached.kept.describe().items())
        return [f"teacher  {teaching.teacher.name}, cached: {kept}"]
    return [f"teacher  {teaching.teacher.name}"] if teaching.another else []
