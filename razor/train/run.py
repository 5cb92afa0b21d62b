"""The main job: one folder, from a config to a small model and a report.

    check       everything that can be wrong is found before anything heavy runs
    plan        what will be done, how large it becomes, what it will take: printed, and kept in recipe.yaml
    data        read or written by the teacher, split, packed
    train       teacher scored, plain rounding scored, student distilled, student scored
    pack        the small model, reloaded and compared with the student
    report      table, figures, every number

A job can be stopped at any point and run again in the same folder: what is finished is not repeated, and
training goes on from the last checkpoint as if nothing had happened.

Of several processes each runs all of this; what is made once (text, converted weights) is made by the first
while the others wait, and the first alone writes, packs and reports.
"""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import lightning as L
from transformers.utils.logging import disable_progress_bar

from razor import processes
from razor.data.corpus import Corpus
from razor.data.steps import StepBatches
from razor.errors import RazorError
from razor.export.folder import RECIPE
from razor.models import make_student
from razor.train import budget
from razor.train.budget import Budget
from razor.train.checkpoints import newest
from razor.train.evaluation import Evaluation
from razor.train.facts import record_hashes, text_hashes
from razor.train.finish import finish
from razor.train.fitting import fit
from razor.train.job import Job, Prepared, check
from razor.train.loggers import closing, publish
from razor.train.module import DistillModule
from razor.train.sharding import is_sharded, whole_state
from razor.train.starting import check_same_start, started

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INTERRUPTED = 130


@dataclass
class Parts:
    """What a run works with: the module, its micro-batches, the text, and who scores."""

    module: DistillModule
    batches: StepBatches
    corpus: Corpus
    evaluation: Evaluation


def run_job(job: Job) -> int:
    """Run or continue a job in its folder; returns the exit code.

    Raises:
        RazorError: bad input, before anything heavy.
    """
    started = time.perf_counter()
    quieten()
    processes.join(job.settings.device.type)
    with processes.first():
        prepared = check(job)
        length = budget.kept(job.folder) or budget.planned(job.settings)
        length.each(job.settings.processes)  # said before anything heavy
        if not (job.folder / RECIPE).is_file():
            prepared.recipe.save(job.folder / RECIPE)
    print(f"\n{prepared}\n", flush=True)
    alone, files = processes.rank() == 0, job.settings.strategy != "deepspeed_zero2"
    # what the first one sees is so for all: disks that machines share may show each something else for a while
    resume_from = processes.gathered(newest(job.folder / "checkpoints", files) if alone else None)[0]
    making = job.loggers.values() if alone else ()
    loggers = [make(folder=job.folder, name=job.folder.name) for make in making]
    L.seed_everything(job.seed, verbose=False)
    parts = _parts(job, prepared, length, resume_from is None)
    if alone:
        record_hashes(job.folder, job.model, parts.corpus)
    with closing(loggers):
        training = fit(job, parts.module, parts.batches, parts.evaluation, loggers, resume_from)
        if training.interrupted:
            print(f"Stopped after step {training.steps} of {parts.batches.max_steps}, saved. Continue with:")
            print(f"  python train.py run={job.folder} ckpt=last")
            return INTERRUPTED
        student = _whole_student(job, prepared, parts.module)
        if student is not None:
            seconds = time.perf_counter() - started
            report = finish(
                job, prepared, parts.corpus, parts.batches, student, parts.evaluation, training, seconds
            )
            publish(loggers, report, job.folder)
    return 0


def _parts(job: Job, prepared: Prepared, length: Budget, begins: bool) -> Parts:
    """Text and models, the same in every process, and the budget as steps, settled by the first."""
    with processes.first():
        corpus, evaluation, module = _loaded(job, prepared, begins)
    _check_same(corpus)
    if processes.rank() == 0 and budget.kept(job.folder) is None:
        length = budget.counted(length, module, corpus, job.rows_per_batch, job.settings.device)
        length.save(job.folder)
    length = processes.gathered(length)[0]
    each, rank, world = length.each(job.settings.processes), processes.rank(), processes.world()
    batches = StepBatches(
        corpus.train, length.steps, job.rows_per_batch, each, job.teaching.seed, rank, world
    )
    parts = Parts(module(length.steps), batches, corpus, evaluation)
    if job.start is not None and begins:
        check_same_start(parts.module.student)
    return parts


def _loaded(
    job: Job, prepared: Prepared, begins: bool
) -> tuple[Corpus, Evaluation, Callable[[int], DistillModule]]:
    """Text and models, read or made; the module still wants the number of steps.

    Args:
        job: what is run.
        prepared: it, checked.
        begins: there is no checkpoint, which would hold what a start finds.
    """
    settings, teaching, dtype = job.settings, job.teaching, job.settings.dtype
    corpus = teaching.taught(teaching.corpus())

    def before(base: PreTrainedModel) -> PreTrainedModel:
        return started(job, make_student(base, prepared.plan, dtype), base, corpus)

    base = job.model.load(dtype)
    student = before(base) if begins else make_student(base, prepared.plan, dtype)
    teacher = None if teaching.cached else teaching.load_teacher() if teaching.another else base
    del base  # unless it teaches, nobody needs it any more
    asked = teacher if job.objective.needs_teacher else None
    kind = teaching.cached.kept.kind if teaching.cached else None

    def module(steps: int) -> DistillModule:
        return DistillModule(student, asked, job.objective, settings, steps, kind, prepared.plan.to_dict())

    evaluation = Evaluation(
        job.benchmark,
        list(corpus.held_out.batches(job.rows_per_batch)),
        teaching.load_teacher if teacher is None else lambda: teacher,
        job.model.tokenizer(),
        f"{teaching.teacher.fingerprint()}-{settings.compute_dtype}",
        job.folder,
        lambda: before(job.model.load(dtype)),
    )
    return corpus, evaluation, module


def _check_same(corpus: Corpus) -> None:
    """Raise RazorError if processes have other text than the first: each would train on a plan of its own."""
    if processes.world() > 1 and len({str(hashes) for hashes in processes.gathered(text_hashes(corpus))}) > 1:
        raise RazorError(
            "Processes of this run have different texts: all machines need the same cache (RAZOR_CACHE on a disk "
            "that they share)."
        )


def _whole_student(job: Job, prepared: Prepared, module: DistillModule) -> PreTrainedModel | None:
    """The trained student, put together if it was cut over processes; None in all but the first."""
    if not is_sharded(module.student):
        return module.student if processes.rank() == 0 else None
    state = whole_state(module.student)
    if processes.rank():
        return None
    student = make_student(job.model.load(job.settings.dtype), prepared.plan, job.settings.dtype)
    student.load_state_dict(state)
    gc.collect()
    return student


def quieten() -> None:
    """Leave the terminal to the plan, the bar and the table: no tips, no notices meant for developers."""
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # of loading weights, which takes a second
    for message in (".*LeafSpec.*", ".*does not have many workers.*", ".*weights_only.*"):
        warnings.filterwarnings("ignore", message=message)
