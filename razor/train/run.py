"""The main job: one folder, from a config to a small model and a report.

    check       everything that can be wrong is found before anything heavy runs
    plan        what will be done, how large it becomes, what it will take: printed, and kept in recipe.yaml
    data        read or written by the teacher, split, packed
    train       teacher scored, plain rounding scored, student distilled, student scored
    pack        the small model, reloaded and compared with the student
    report      table, figures, every number

A job can be stopped at any point and run again in the same folder: what is finished is not repeated, and
training goes on from the last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import logging
import signal
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.loggers import Logger
from transformers.utils.logging import disable_progress_bar

from razor.data.corpus import Corpus
from razor.data.steps import StepBatches
from razor.export.folder import RECIPE
from razor.models import make_student
from razor.train.budget import steps_of_run
from razor.train.checkpoints import AtomicCheckpointIO, Checkpoints, newest
from razor.train.evaluation import Evaluation
from razor.train.finish import finish
from razor.train.job import Job, Training, check
from razor.train.loader import StepData
from razor.train.loggers import close
from razor.train.module import DistillModule
from razor.train.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INTERRUPTED = 130


def run_job(job: Job) -> int:
    """Run or continue a job in its folder; returns the exit code.

    Raises:
        RazorError: bad input, before anything heavy.
    """
    started = time.perf_counter()
    quieten()
    prepared = check(job)
    if not (job.folder / RECIPE).is_file():
        prepared.recipe.save(job.folder / RECIPE)
    print(f"\n{prepared}\n", flush=True)
    resume_from = newest(job.folder / "checkpoints")
    loggers = [make(folder=job.folder, name=job.folder.name) for make in job.loggers.values()]
    L.seed_everything(job.seed, verbose=False)
    teaching, dtype = job.teaching, job.settings.dtype
    corpus = teaching.taught(teaching.corpus())
    base = job.model.load(dtype)
    student = make_student(base, prepared.plan, dtype)
    teacher = None if teaching.cached else teaching.load_teacher() if teaching.another else base
    del base  # unless it teaches, nobody needs it any more
    module, batches = _module(job, student, teacher, corpus)
    evaluation = Evaluation(
        job.benchmark,
        list(corpus.held_out.batches(job.rows_per_batch)),
        teaching.load_teacher if teacher is None else lambda: teacher,
        job.model.tokenizer(),
        f"{teaching.teacher.fingerprint()}-{job.settings.compute_dtype}",
        job.folder,
    )
    training = fit(job, module, batches, evaluation, loggers, resume_from)
    if training.stopped and training.steps < batches.max_steps:
        print(f"Stopped after step {training.steps} of {batches.max_steps}, saved. Continue with:")
        print(f"  python train.py run={job.folder} ckpt=last")
        return INTERRUPTED
    finish(job, prepared, corpus, batches, student, evaluation, training, time.perf_counter() - started)
    return 0


def _module(
    job: Job, student: PreTrainedModel, teacher: PreTrainedModel | None, corpus: Corpus
) -> tuple[DistillModule, StepBatches]:
    """What is trained, and every micro-batch of it."""
    settings, objective = job.settings, job.objective
    cached = job.teaching.cached.kept.kind if job.teaching.cached else None
    steps = steps_of_run(
        job.folder, settings, objective, student, teacher, corpus, job.rows_per_batch, cached
    )
    batches = StepBatches(corpus.train, steps, job.rows_per_batch, settings.accumulate, job.teaching.seed)
    asked = teacher if objective.needs_teacher else None
    return DistillModule(student, asked, objective, settings, steps, cached), batches


def quieten() -> None:
    """Leave the terminal to the plan, the bar and the table: no tips, no notices meant for developers."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # of loading weights, which takes a second
    for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*weights_only.*"):
        warnings.filterwarnings("ignore", message=message)


def fit(
    job: Job,
    module: DistillModule,
    batches: StepBatches,
    evaluation: Evaluation,
    loggers: list[Logger],
    resume_from: Path | None,
) -> Training:
    """Train with Lightning, from a checkpoint if there is one.

    Raises:
        KeyboardInterrupt: stopped at once, in the middle of a step or of scoring.
    """
    checkpoints = Checkpoints(job.folder / "checkpoints", job.settings.checkpoint_every)
    progress = Progress()
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
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, StepData(batches), ckpt_path=resume_from, weights_only=True)
    except SystemExit as stop:  # what Lightning makes of Ctrl-C, after it turned the signal off
        raise KeyboardInterrupt from stop
    finally:
        signal.signal(signal.SIGINT, on_interrupt)
        close(loggers)
    return Training(trainer.global_step, checkpoints.stopped, progress.seconds, progress.tokens)
