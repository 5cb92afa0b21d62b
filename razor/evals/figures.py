"""The figures of a run: its losses, and what the bits that were left can still do."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from razor.storage import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from razor.evals.report import Row

INK, BLUE, RED, GREY = "#222222", "#2463a8", "#c0392b", "#8a8a8a"


def _figure(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Sequence]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", color=INK)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes  # type: ignore[return-value]


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def draw_losses(metrics: Path, path: Path) -> bool:
    """Loss curves from a metrics.csv; False if there is none."""
    if not metrics.is_file():
        return False
    with metrics.open() as stream:
        rows = list(csv.DictReader(stream))
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name and name.startswith("loss/") and value:
                curves.setdefault(name.removeprefix("loss/"), []).append((int(row["step"]), float(value)))
    if not curves:
        return False
    figure, axes = _figure("Losses", "optimizer step", "loss (KL, cross entropy: nats; features: squared)")
    for name, points in sorted(curves.items()):
        axes.plot(*zip(*points, strict=True), label=name, linewidth=2.2 if name == "total" else 1.2)  # type: ignore[attr-defined]
    axes.set_yscale("log")  # type: ignore[attr-defined]
    axes.legend(frameon=False)  # type: ignore[attr-defined]
    _save(figure, path)
    return True


def draw_score_vs_ratio(rows: Sequence[Row], path: Path) -> None:
    """Average score (or, without tasks, held-out KL) against the compression ratio."""
    scored = all(row.scores.average is not None for row in rows)
    label = "average score (%)" if scored else "held-out KL to the teacher (nats)"
    figure, axes = _figure("What is left at this size", "compression ratio (16 bit = 1)", label)
    for row, colour in zip(rows, (GREY, RED, BLUE), strict=False):
        value = row.scores.average if scored else row.held_out.kl
        axes.scatter([row.ratio_paper], [value], color=colour, s=70, zorder=3)  # type: ignore[attr-defined]
        axes.annotate(  # type: ignore[attr-defined]
            f"{row.name} ({row.w_a_kv})",
            (row.ratio_paper, value),
            textcoords="offset points",
            xytext=(-8 if row.ratio_paper > 2 else 8, 8),
            ha="right" if row.ratio_paper > 2 else "left",
        )
    axes.margins(0.12, 0.2)  # type: ignore[attr-defined]
    _save(figure, path)
