"""Score against true bits per weight, with the frontier of what no other run beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from razor.evals.compare import Comparison, Line, frontier
from razor.evals.compare_table import plain
from razor.evals.figures import GREY, _figure, _save

COLOURS = ("#2463a8", "#c0392b", "#2e8b57", "#8e44ad", "#d68910", "#16a2b8", "#7f6a4d", "#444444")
SHAPES = "osD^vPX"
BESIDE = 6
"""Entries of a legend that find room among the points."""


def draw_pareto(comparison: Comparison, path: Path) -> bool:
    """Draw the trained students: colours tell losses and whatever else differs, labels the quantization.

    Up is better: the average of the benchmarks if every run has one, else held-out KL on a reversed logarithmic
    axis. Rows that are not comparable are hollow, and the frontier leaves them out. False if nothing is to draw.
    """
    lines = [line for line in comparison.lines if line.row == "after"]
    if not lines:
        return False
    scored = comparison.score == "average"
    label = "average score (%)" if scored else "held-out KL to the teacher (nats), reversed"
    figure, axes = _figure("What is left of the model, and in how many bits", "stored bits per weight", label)
    figure.set_size_inches(8, 5)
    ax: Any = axes
    if not scored:
        ax.set_yscale("log")
        ax.invert_yaxis()
    draw_frontier(ax, lines, comparison.score)
    for number, name in enumerate(dict.fromkeys(map(series, lines))):
        for hollow in (False, True):
            own = [line for line in lines if series(line) == name and bool(line.marks) == hollow]
            draw_points(ax, own, comparison.score, name, number, hollow)
    for text, place in labels(lines, comparison.score):
        ax.annotate(text, place, textcoords="offset points", xytext=(-8, 8), ha="right", fontsize=9)
    ax.margins(0.14, 0.16)
    if not scored:
        plain_ticks(ax)
    handles, names = ax.get_legend_handles_labels()
    if len(names) <= BESIDE:
        ax.legend(frameon=False, fontsize=8, loc="best")
    else:  # or it would lie on the points
        figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower left")
        figure.set_size_inches(8, 5 + 0.18 * len(names))
    _save(figure, path)
    return True


def plain_ticks(ax: Any) -> None:
    """Numbers as people write them; between powers of ten all of them only on short axes."""
    low, high = sorted(ax.get_ylim())
    ax.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
    ax.yaxis.set_minor_formatter(
        lambda number, _: f"{number:g}" if high / low < 10 or f"{number:.0e}"[0] in "25" else ""
    )


def draw_frontier(ax: Any, lines: Sequence[Line], score: str) -> None:
    """The dashed line through what no other comparable run beats."""
    sign = 1 if score == "average" else -1
    best = frontier([(line.bits, sign * value(line, score)) for line in lines if not line.marks])
    if len(best) > 1:
        points = [(bits, sign * height) for bits, height in best]
        ax.plot(
            *zip(*points, strict=True), color=GREY, linewidth=1.4, linestyle="--", zorder=1, label="frontier"
        )


def draw_points(ax: Any, lines: Sequence[Line], score: str, name: str, number: int, hollow: bool) -> None:
    """The rows of one series, with the spread over their seeds."""
    if not lines:
        return
    colour = COLOURS[number % len(COLOURS)]
    ax.errorbar(
        [line.bits for line in lines],
        [value(line, score) for line in lines],
        yerr=[line.spread(score) or 0 for line in lines],
        fmt=SHAPES[number % len(SHAPES)],
        color=colour,
        markerfacecolor="white" if hollow else colour,
        markersize=8,
        elinewidth=1,
        zorder=3,
        label=name + (" (not comparable)" if hollow else ""),
    )


def value(line: Line, score: str) -> float:
    """The score of a row."""
    found = line.mean(score)
    assert found is not None
    return found


def series(line: Line) -> str:
    """What a colour stands for: the losses, and the keys in which runs differ."""
    extra = [
        f"{key.rpartition('.')[2]} {plain(value)}" for key, value in line.extra.items() if value is not None
    ]
    return ", ".join([line.first.losses, *extra])


def labels(lines: Sequence[Line], score: str) -> list[tuple[str, tuple[float, float]]]:
    """The name of each quantization, once for each size, above the best point of it."""
    better = max if score == "average" else min
    found: dict[tuple[str, float], tuple[float, float]] = {}
    for line in lines:
        key, point = (line.first.quant, round(line.bits, 2)), (line.bits, value(line, score))
        found[key] = better(found.get(key, point), point, key=lambda place: place[1])
    return [(text, place) for (text, _), place in found.items()]
