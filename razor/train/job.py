"""The main job: one folder, from a config to a small model and a report.

    check       everything that can be wrong is found before anything heavy runs
    plan        what will be done, how large it becomes, what it will take: printed
    data        read or written by the teacher, split, packed
    train       teacher scored, plain rounding scored, student distilled, student scored
    pack        the small model, reloaded and compared with the student
    report      table, figures, every number

A job can be stopped at any point and run again in the same folder: what is finished is not repeated, and
training goes on from the last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from razor.data.corpus import Corpus, check_sequence_length
from razor.data.sources.base import Teacher, TextSource
from razor.data.steps import StepBatches
from razor.distill import Objective
from razor.evals.harness import Benchmark
from razor.models import ModelSource, make_student
from razor.quant import ModelSize, Plan, measure
from razor.recipe import QuantRecipe
from razor.storage import require_space
from razor.train.budget import steps_of_run
from razor.train.checkpoints import AtomicCheckpointIO, Checkpoints, newest
from razor.train.estimate import Estimate, estimate
from razor.train.evaluation import Evaluation
from razor.train.finish import finish
from razor.train.loader import StepData
from razor.train.loggers import close
from razor.train.module import DistillModule
from razor.train.progress import Progress
from razor.train.settings import TrainSettings

INTERRUPTED = 130


@dataclass
class Job:
    """Everything a run is made of, already built (see conf/train.yaml)."""

    folder: Path
    model: ModelSource
    model_note: str | None
    recipe: QuantRecipe
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


def run_job(job: Job) -> int:
    """Run or continue a job in its folder; returns the exit code.

    Raises:
        RazorError: bad input, before anything heavy.
    """
    started = time.perf_counter()
    quieten()
    prepared = check(job)
    print(f"\n{prepared}\n", flush=True)
    L.seed_everything(job.seed, verbose=False)
    tokenizer = job.model.tokenizer()
    teacher_writes = Teacher(job.model.fingerprint(), lambda: job.model.load(job.settings.dtype))
    corpus = Corpus.build(
        job.source,
        tokenizer,
        job.sequence_length,
        job.held_out,
        job.data_seed,
        _longest(job.model),
        teacher_writes,
    )
    teacher = job.model.load(job.settings.dtype)
    student = make_student(teacher, prepared.plan, job.settings.dtype)
    resume_from = newest(job.folder / "checkpoints")
    steps = steps_of_run(
        job.folder, job.settings, job.objective, student, teacher, corpus, job.rows_per_batch
    )
    batches = StepBatches(corpus.train, steps, job.rows_per_batch, job.settings.accumulate, job.data_seed)
    evaluation = Evaluation(
        job.benchmark,
        list(corpus.held_out.batches(job.rows_per_batch)),
        teacher,
        tokenizer,
        f"{job.model.fingerprint()}-{job.settings.compute_dtype}",
        job.folder,
    )
    module = DistillModule(
        student, teacher if job.objective.needs_teacher else None, job.objective, job.settings, steps
    )
    training = fit(job, module, batches, evaluation, resume_from)
    if training.stopped and training.steps < steps:
        print(f"Stopped after step {training.steps} of {steps}, saved. Continue with:")
        print(f"  python train.py run={job.folder} ckpt=last")
        return INTERRUPTED
    finish(job, prepared, corpus, batches, student, evaluation, training, time.perf_counter() - started)
    return 0


def check(job: Job) -> Prepared:
    """Find everything that can be wrong before anything heavy runs."""
    job.model.prepare()
    config, skeleton = job.model.config(), job.model.skeleton()
    check_sequence_length(job.sequence_length, _longest(job.model))
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


@dataclass(frozen=True)
class Training:
    """What training did: steps done in all, whether it was asked to stop, seconds and tokens of this process."""

    steps: int
    stopped: bool
    seconds: float
    tokens: int


def quieten() -> None:
    """Leave the terminal to the plan, the bar and the table: no tips, no notices meant for developers."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*weights_only.*"):
        warnings.filterwarnings("ignore", message=message)


def fit(
    job: Job, module: DistillModule, batches: StepBatches, evaluation: Evaluation, resume_from: Path | None
) -> Training:
    """Train with Lightning, from a checkpoint if there is one."""
    checkpoints = Checkpoints(job.folder / "checkpoints", job.settings.checkpoint_every)
    progress = Progress()
    loggers = [make(folder=job.folder, name=job.folder.name) for make in job.loggers.values()]
    trainer = L.Trainer(
        accelerator=job.settings.accelerator,
        devices=1,
        max_steps=batches.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=job.settings.accumulate,
        gradient_clip_val=job.settings.clip,
        logger=loggers or False,
        callbacks=[evaluation, progress, checkpoints],
        plugins=[AtomicCheckpointIO()],
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        inference_mode=False,
        default_root_dir=job.folder,
    )
    if resume_from is not None:
        print(f"Continuing from '{resume_from}'.", flush=True)
    trainer.fit(module, StepData(batches), ckpt_path=resume_from, weights_only=True)
    close(loggers)
    return Training(trainer.global_step, checkpoints.stopped, progress.seconds, progress.tokens)


def _longest(model: ModelSource) -> int | None:
    return getattr(model.config(), "max_position_embeddings", None)
