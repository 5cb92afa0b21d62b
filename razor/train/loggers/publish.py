"""The end of a run, for its loggers: `publish` what it found, then `close`.

Lightning is done with its loggers when training ends, but the numbers people look for come later. So training
leaves loggers open, the report is published to those that can show it, and closing comes last, whatever happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.loggers import Logger

from razor.evals import allocation_report
from razor.evals.report import Report

FIGURES = ("losses.png", "score_vs_ratio.png", *(f"{name}.png" for name in allocation_report.FIGURES))
FOUND = (f"{allocation_report.FOLDER}/{allocation_report.NUMBERS}",)
FILES = ("report.json", "report.md", "recipe.yaml", "config.yaml", "packed/razor.json", *FIGURES, *FOUND)
"""What makes up the report of a run, in its folder; `razor.json` holds the plan, `packed/` is the whole model."""


def publish(loggers: Sequence[Logger], report: Report, folder: Path) -> None:
    """Give the report of the run in `folder` to every logger that can show it; a failing one is only mentioned."""
    for logger in loggers:
        if hasattr(logger, "publish"):
            logger.publish(report, folder)


def close(loggers: Sequence[Logger], status: str = "success") -> None:
    """Finish all of them, so that the next job of a sweep starts a run of its own.

    Args:
        loggers: of the run.
        status: "success" or "failed".
    """
    for logger in loggers:
        if hasattr(logger, "close"):
            logger.close(status)
        else:
            logger.finalize(status)


@contextmanager
def closing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Close loggers when the block ends; as "failed" if by an exception, Ctrl-C included."""
    try:
        yield
    except BaseException:
        close(loggers, "failed")
        raise
    close(loggers)


def final_values(report: Report) -> dict[str, float]:
    """The numbers of every row, named `final/<row>/<what>`."""
    found: dict[str, float] = {}
    for row in report.rows:
        values = {"kl": row.held_out.kl, "perplexity": row.held_out.perplexity, "ratio": row.ratio_paper}
        values |= {score.task: score.value for score in row.scores.tasks}
        if row.scores.average is not None:
            values["average"] = row.scores.average
        found |= {f"final/{row.name}/{key}": float(value) for key, value in values.items()}
    return found


def table_of(report: Report) -> tuple[list[str], list[list[float | str | None]]]:
    """Columns and rows of the evaluation table: teacher, before, after."""
    tasks = [score.task for score in report.rows[0].scores.tasks]
    columns = ["model", "W-A-KV", *tasks, "average", "perplexity", "kl", "ratio", "ratio_disk", "bytes_disk"]
    rows: list[list[float | str | None]] = [
        [
            row.name,
            row.w_a_kv,
            *(score.value for score in row.scores.tasks),
            row.scores.average,
            row.held_out.perplexity,
            row.held_out.kl,
            row.ratio_paper,
            row.ratio_disk,
            row.bytes_disk,
        ]
        for row in report.rows
    ]
    return columns, rows


def files_of(folder: Path) -> list[Path]:
    """The files of a report that are there."""
    return [folder / name for name in FILES if (folder / name).is_file()]
