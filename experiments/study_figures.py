"""The figures of studies, from their results alone: what is left at which size, what tokens buy, how layers err."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import study_cells
from matplotlib.figure import Figure
from study_cells import Cell

HERE = Path(__file__).resolve().parent
STYLE = {
    "rtn": ("plain rounding", "#8a8a8a", "x"),
    "gptq": ("GPTQ", "#d68910", "^"),
    "awq": ("AWQ", "#16a2b8", "v"),
    "autoround": ("AutoRound", "#7f6a4d", "P"),
    "qat": ("labels alone", "#444444", "D"),
    "peer": ("edgerazor 1.3.5", "#c0392b", "s"),
    "paper": ("the same losses in Razor", "#8e44ad", "D"),
    "even_rows": ("Razor, every n-th row", "#7aa6d8", "o"),
    "ours": ("Razor, small budget", "#2463a8", "o"),
}


def axes_of(title: str, xlabel: str, ylabel: str) -> tuple[Figure, Any]:
    """A figure in the style of a run's own."""
    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    axes: Any = figure.add_subplot()
    axes.set_title(title, loc="left", color="#222222")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def logarithmic(axes: Any) -> None:
    """A logarithmic axis with numbers as people write them."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:g}")
    axes.yaxis.set_minor_formatter(lambda number, _: f"{number:g}" if f"{number:.0e}"[0] in "235" else "")


def by_method(cells: Sequence[Cell]) -> dict[str, dict[str, list[Cell]]]:
    """Cells with a held-out number, by method and quant."""
    found: dict[str, dict[str, list[Cell]]] = {}
    for cell in cells:
        if (
            cell["method"] in STYLE
            and cell["held_out"] is not None
            and ("cell" not in cell or "tuned" in cell)
        ):
            found.setdefault(cell["method"], {}).setdefault(cell["quant"], []).append(cell)
    return {method: found[method] for method in STYLE if method in found}


def pareto(cells: Sequence[Cell], path: Path) -> None:
    """Held-out KL (reversed, logarithmic: up is better) against the compression ratio."""
    figure, axes = axes_of(
        "What is left of the model, and how small it is", "compression ratio", "held-out KL, nats"
    )
    for method, widths in by_method(cells).items():
        label, colour, shape = STYLE[method]
        points = sorted(
            (same[0]["ratio_paper"], statistics.fmean(c["held_out"]["kl"] for c in same), spread(same))
            for same in widths.values()
        )
        ratios, values, errors = zip(*points, strict=True)
        axes.errorbar(ratios, values, yerr=errors, label=label, color=colour, marker=shape, linewidth=1.4)
    logarithmic(axes)
    axes.invert_yaxis()
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def spread(same: Sequence[Cell]) -> float:
    """Standard deviation of KL over seeds; 0 of one."""
    return statistics.stdev(c["held_out"]["kl"] for c in same) if len(same) > 1 else 0.0


def tokens(cells: Sequence[Cell], path: Path) -> None:
    """Held-out KL against tokens of text seen, calibration included; a colour a method, a line style a width."""
    figure, axes = axes_of("What tokens buy", "tokens of text seen", "held-out KL, nats")
    styles = {"w4": ":", "mixed_2p79": "--", "mixed_1p88": "-.", "w1p58": "-"}
    for method, widths in by_method(cells).items():
        label, colour, _ = STYLE[method]
        for quant, same in widths.items():
            for cell in same:
                if len(cell["curve"]) < 2:
                    continue
                before = cell["calibration_tokens"] or 0
                seen, values = zip(*cell["curve"], strict=True)
                name = f"{label}, {cell['w_a_kv'].split('-')[0]}" if cell is same[0] else None
                axes.plot(
                    [before + n for n in seen], values, styles[quant], color=colour, label=name, linewidth=1.5
                )
    logarithmic(axes)
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def layers(found: Mapping[str, Any], path: Path) -> None:
    """Relative squared error of hidden states (logarithmic) from the first layer to the last; a line a method."""
    figure, axes = axes_of(
        f"Distance to the teacher, layer by layer ({found['w_a_kv']})",
        "decoder layer whose output it is (0: embedding)",
        "relative squared error of hidden states",
    )
    for method in (name for name in STYLE if name in found["errors"]):
        label, colour, shape = STYLE[method]
        errors = found["errors"][method]
        axes.plot(range(len(errors)), errors, label=label, color=colour, marker=shape, ms=4, linewidth=1.4)
    logarithmic(axes)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=120, metadata={"Software": None})


DRAWINGS: dict[str, Callable[[Sequence[Cell], Path], None]] = {"pareto": pareto, "tokens": tokens}
"""What is drawn of the cells of a rung."""


def draw_all() -> list[Path]:
    """All figures of every rung of the ladder that has cells, and that of layers if they were measured."""
    drawn = []
    for rung in sorted(path for path in (HERE / "ladder" / "results").iterdir() if path.is_dir()):
        cells = study_cells.ladder(rung.name)
        for name, draw in DRAWINGS.items():
            path = HERE / "ladder" / f"{name}_{rung.name}.png"
            draw(cells, path)
            drawn.append(path)
    if measured := study_cells.layers():
        drawn.append(HERE / "ladder" / "layers.png")
        layers(measured, drawn[-1])
    return drawn
