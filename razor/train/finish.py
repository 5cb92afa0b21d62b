"""The end of a run: pack the student, prove the packed model, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.data.corpus import Corpus
from razor.data.sources.hub_benchmarks import said_of
from razor.data.steps import StepBatches
from razor.evals.allocation_report import of_run
from razor.evals.figures import draw_losses, draw_score_vs_ratio
from razor.evals.plan_table import size_figures
from razor.evals.report import Report, Row
from razor.export.compressed import Compressed
from razor.export.exporter import export
from razor.export.folder import RECIPE
from razor.export.packed import check_packed, packed_bytes, save_packed
from razor.models import inputs_of
from razor.models.task import name_classes
from razor.storage import EXPORTS
from razor.train.evaluation import Evaluation
from razor.train.facts import environment, record_hashes
from razor.train.loggers import LOGS
from razor.train.starting import start_facts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.quant import ModelSize
    from razor.train.job import Job, Prepared, Training


def finish(
    job: Job,
    prepared: Prepared,
    corpus: Corpus,
    batches: StepBatches,
    student: PreTrainedModel,
    evaluation: Evaluation,
    training: Training,
    seconds: float,
) -> Report:
    """Pack, check and report; prints the table and what was made."""
    packed = job.folder / "packed"
    student = student.cpu().eval()
    source, config = job.teaching.source, student.config
    about = {**job.about, "w_a_kv": job.recipe.w_a_kv} | source.described(config)
    if (names := source.class_names_for(config)) is not None:
        name_classes(config, names)
    save_packed(student, prepared.plan, evaluation.tokenizer, job.settings.dtype, packed, about)
    prepared.recipe.save(packed / RECIPE)
    check_packed(student, packed, inputs_of(student, evaluation.held_out[0].to("cpu")))
    report = Report(
        title=f"{job.model.name}, {job.recipe.name} ({job.recipe.w_a_kv})",
        rows=_rows(job, prepared, evaluation, packed),
        facts=_facts(job, prepared.size, corpus, batches, training, seconds),
        notes=_notes(job, evaluation, training),
    )
    if draw_losses(job.folder / LOGS / "metrics.csv", job.folder / "losses.png"):
        report.figures.append("losses")
    draw_score_vs_ratio(report.rows, job.folder / "score_vs_ratio.png")
    report.figures += ["score_vs_ratio", *of_run(job.folder)[1]]
    report.save(job.folder)
    print(f"\n{report.table()}\n")
    for note in report.notes:
        print(f"- {note}")
    print(f"\nreport   {job.folder / 'report.md'} (every number: report.json)")
    print(
        f"model    {packed} ({packed_bytes(packed) / 1e6:.1f} MB of weights; checked: same logits as the student)"
    )
    if job.model.task == "text":
        print(f"talk     razor chat run={job.folder}", flush=True)
    if job.exporters:
        export(Compressed.open(job.folder), job.exporters, job.folder / EXPORTS)
    return report


def _rows(job: Job, prepared: Prepared, evaluation: Evaluation, packed: Path) -> list[Row]:
    total = prepared.size.total
    full = 2 * total.parameters
    small, large = packed_bytes(packed), full
    if job.teaching.another:
        large = 2 * sum(p.numel() for p in job.teaching.teacher.skeleton().parameters())
    sizes: dict[str, tuple[str, float, int]] = {
        "teacher": ("W16-A16" if job.model.task == "images" else "W16-A16-KV16", full / large, large),
        "before": (job.recipe.w_a_kv, total.ratio_paper, small),
        "after": (job.recipe.w_a_kv, total.ratio_paper, small),
    }
    rows = []
    for name, (w_a_kv, ratio, size) in sizes.items():
        scores, held_out = evaluation.found(name)
        rows.append(Row(name, w_a_kv, scores, held_out, ratio, full / size, size))
    return rows


def _notes(job: Job, evaluation: Evaluation, training: Training) -> list[str]:
    limit = job.benchmark.limit
    plain = "by plain rounding" if job.start is None else f"as {job.start.name} started it, without training"
    notes = [
        f"teacher: the 16-bit model; before: the student {plain}; after: the student distilled.",
        _held_out_note(job, evaluation)
        + (f", first {limit} rows of each task." if limit and job.benchmark.tasks else "."),
        "ratio: paper's accounting (a trit is 1.58 bits); on disk: bytes of the packed weights file.",
    ]
    if job.teaching.another:
        notes.append(
            f"the teacher is {job.teaching.teacher.name}, another model; ratios are to {job.model.name} at 16 bits."
        )
    if job.teaching.cached:
        kept = " ".join(f"{key}={value}" for key, value in job.teaching.cached.kept.describe().items())
        notes.append(
            f"trained from the teacher's cached targets ({kept}); scored against the teacher itself."
        )
    if job.teaching.source.benchmarks is not None:
        notes.append(said_of(job.teaching.source.benchmarks))
    if job.model_note:
        notes.append(
            f"{job.model_note}: recovery is measured against that, not against the original weights."
        )
    return notes


def _held_out_note(job: Job, evaluation: Evaluation) -> str:
    counted = evaluation.found("after")[1].tokens
    if job.model.task == "images":
        return (
            "KL(teacher || student) in nats per image and perplexity (exp of the mean cross entropy) on held-out "
            f"images ({counted}); accuracy in percent with its standard error, calibration: the expected gap "
            "between confidence and accuracy in percent points, less is better"
        )
    return (
        "KL(teacher || student) in nats per response token and perplexity on held-out text "
        f"({counted} tokens); scores in percent with their standard error"
    )


def _facts(
    job: Job, size: ModelSize, corpus: Corpus, batches: StepBatches, training: Training, seconds: float
) -> dict[str, Any]:
    taught: dict[str, Any] = {}
    unit = job.teaching.source.unit
    if job.teaching.another:
        taught = {
            "teacher": job.teaching.teacher.name,
            "teacher_fingerprint": job.teaching.teacher.fingerprint(),
        }
    if job.teaching.source.benchmarks is not None:
        taught["benchmarks_in_training"] = list(job.teaching.source.benchmarks)
    if (cache := getattr(corpus.train, "taught", None)) is not None:
        taught["teacher_targets"] = {"folder": str(cache.folder)} | cache.identity
    return (
        {
            "model": job.model.name,
            "model_fingerprint": job.model.fingerprint(),
            "seed": job.seed,
            "steps": training.steps,
            f"{unit}_seen": training.tokens,
            "data": record_hashes(job.folder, job.model, corpus),
            f"train_{unit}_distinct": corpus.train.tokens,
            "train_epochs": batches.epochs,
            f"{unit}_per_second": training.speed,  # since the run was last resumed
            "processes": job.settings.processes,
            "seconds_training": training.seconds,
            "seconds_total": seconds,
            "config": job.config,
        }
        | taught
        | ({"towers": {n: size_figures(s) for n, s in size.towers.items()}} if size.towers else {})
        | start_facts(job.folder)
        | of_run(job.folder)[0]
        | environment(job.settings.device)
    )
