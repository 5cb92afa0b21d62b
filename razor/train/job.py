"""What a run is made of, and everything that can be wrong with it.

A `Job` arrives already built from its config. `check` finds what does not fit, a group, a length, a missing
package, a full disk, from shapes alone and before anything heavy runs, and says what the run will take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from razor.data.corpus import check_sequence_length
from razor.data.sources.base import TextSource
from razor.distill import Objective
from razor.errors import RazorError
from razor.evals.harness import Benchmark
from razor.models import ModelSource
from razor.quant import ModelSize, Plan, measure
from razor.recipe import PlanFile, QuantRecipe, Recipe
from razor.storage import require_space
from razor.train.estimate import Estimate, estimate
from razor.train.settings import TrainSettings


@dataclass
class Job:
    """Everything a run is made of, already built (see conf/train.yaml)."""

    folder: Path
    model: ModelSource
    model_note: str | None
    recipe: QuantRecipe | PlanFile
    objective: Objective
    source: TextSource
    sequence_length: int
    rows_per_batch: int
    held_out: int
    data_seed: int
    settings: TrainSettings
    benchmark: Benchmark
    loggers: Mapping[str, Callable[..., Logger]]
    seed: int
    config: dict[str, Any]


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
        tokens = job.settings.max_steps * job.settings.accumulate * job.rows_per_batch * job.sequence_length
        note = f" ({job.model_note})" if job.model_note else ""
        budget = (
            f"{job.settings.max_minutes:g} minutes of training"
            if job.settings.max_minutes
            else f"{job.settings.max_steps} steps, up to {tokens:,} tokens, about {self.needs.seconds / 60:.0f} min"
        )
        objective = ", ".join(f"{weight:g} {name}" for name, weight in job.objective.weights.items())
        return "\n".join(
            [
                f"model    {job.model.name}, {total.parameters / 1e6:.1f} M parameters{note}",
                f"student  {job.recipe.name}: {job.recipe.w_a_kv}, {total.bits_per_weight:.2f} bits per weight, "
                f"ratio {total.ratio_paper:.2f} ({total.ratio_disk:.2f} on disk, {total.bytes_disk / 1e6:.1f} MB)",
                f"losses   {objective}",
                f"budget   {budget} of training on {job.settings.device.type}, "
                f"{self.needs.memory / 1e9:.1f} GB of memory (estimates)",
                f"folder   {job.folder}",
            ]
        )


@dataclass(frozen=True)
class Training:
    """What training did: steps done in all, whether it was asked to stop, seconds and tokens of this process."""

    steps: int
    stopped: bool
    seconds: float
    tokens: int


def check(job: Job) -> Prepared:
    """Find everything that can be wrong before anything heavy runs."""
    for key in ("held_out", "rows_per_batch"):
        if getattr(job, key) < 1:
            raise RazorError(f"data.{key}={getattr(job, key)} must be at least 1.")
    job.model.prepare()
    config, skeleton = job.model.config(), job.model.skeleton()
    check_sequence_length(job.sequence_length, longest_text(job.model))
    plan = job.recipe.plan(skeleton)
    if job.objective.needs_teacher:
        job.objective.teacher_layers(config.num_hidden_layers)
    tokenizer = job.model.tokenizer()
    job.benchmark.prepare(tokenizer)
    per_batch = job.rows_per_batch * job.sequence_length
    tokens = per_batch * job.settings.accumulate * job.settings.max_steps
    needs = estimate(job.model, per_batch, tokens, job.objective.needs_teacher, job.settings.device)
    size = measure(skeleton, plan)
    # two checkpoints at once while one replaces the other, and the packed model
    require_space(job.folder, 2 * needs.checkpoint + 2 * size.total.bytes_disk, "this run")
    return Prepared(job, plan, size, needs)


def longest_text(model: ModelSource) -> int | None:
    """Longest sequence the model can read, tokens; None if it does not say."""
    return getattr(model.config(), "max_position_embeddings", None)
