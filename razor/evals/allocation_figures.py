"""Figures of an allocation: what is sensitive, and what a budget buys.

They are drawn from what lies in its folder, so a study draws them again from the files that it keeps. Bits by layer
and kind of matrix are the figure of the plan itself (`razor.evals.plan_figure`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from razor.allocate.budget import UNITS
from razor.evals.figures import BLUE, GREY, INK, RED
from razor.storage import atomic_write

LAYER = re.compile(r"\.(\d+)\.")
MAP = "viridis"


def draw_sensitivity(
    numbers: Mapping[str, Any], losses: Sequence[tuple[str, str, float]], path: Path
) -> None:
    """Bars: what each option would lose, by kind of matrix and by layer, all matrices of a bar together (PNG).

    Args:
        numbers: of allocation.json.
        losses: (module, option, loss), as in scores.csv.
        path: of the figure.
    """
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    kinds: dict[str, dict[str, float]] = {}
    layers: dict[str, dict[str, float]] = {}
    for name, option, loss in losses:
        number = LAYER.search(name)
        for bars, key in ((kinds, name.rpartition(".")[2]), (layers, number[1] if number else name)):
            own = bars.setdefault(key, {})
            own[option] = own.get(option, 0.0) + loss
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3), sharey=True)
    options = list(dict.fromkeys(option for _, option, _ in losses))
    _bars(left, kinds, options)
    _bars(right, layers, options)
    left.set_xlabel("kind of matrix")
    right.set_xlabel("layer")
    left.set_ylabel(f"loss ({numbers['predicted_unit']})")
    named = left.get_legend_handles_labels()
    figure.legend(*named, loc="outside lower left", ncols=max(1, len(options)), frameon=False, fontsize=9)
    title = f"{numbers['model']}: what each option would lose, by {numbers['score']}"
    figure.suptitle(title, x=0.01, ha="left", color=INK)
    _save(figure, path)


def _bars(axes: Any, bars: dict[str, dict[str, float]], options: list[str]) -> None:
    import matplotlib

    width = 0.85 / len(options)
    for place, option in enumerate(options):
        shade = matplotlib.colormaps[MAP](0.1 + 0.75 * place / max(1, len(options) - 1))
        left = [index + (place - (len(options) - 1) / 2) * width for index in range(len(bars))]
        axes.bar(left, [own.get(option, 0.0) for own in bars.values()], width, label=option, color=shade)
    values = [value for own in bars.values() for value in own.values()]
    if values and min(values) > 0:
        axes.set_yscale("log")
    step = max(1, len(bars) // 12)
    names = list(bars)
    axes.set_xticks(range(0, len(bars), step), names[::step], rotation=0 if len(names[0]) < 3 else 30)
    axes.spines[["top", "right"]].set_visible(False)


def draw_budgets(numbers: Mapping[str, Any], path: Path) -> None:
    """The best plan at every budget: predicted loss as a line, true KL on held-out text as points (PNG).

    Args:
        numbers: of allocation.json.
        path: of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    line = [point for point in numbers["curve"] if point["kl"] is None]
    amounts, losses = ([point[key] for point in line] for key in ("budget", "predicted"))
    axes.plot(amounts, losses, color=GREY, label=f"predicted by {numbers['score']}")
    axes.set_xlabel(UNITS[numbers["unit"]])
    axes.set_ylabel(f"predicted loss ({numbers['predicted_unit']})")
    true = [(point["budget"], point["kl"]) for point in numbers["curve"] if point["kl"] is not None]
    here = numbers["budget"]
    if numbers["kl"] is not None:
        other = axes.twinx()
        other.scatter(*zip(*true, strict=True), color=BLUE, label="true KL, held out") if true else None
        other.scatter([here], [numbers["kl"]], color=RED, zorder=3, label="the plan")
        other.set_ylabel("true KL on held-out text (nats)")
        other.set_ylim(bottom=0)
        other.legend(frameon=False, loc="upper center")
        other.spines[["top"]].set_visible(False)
    axes.axvline(here, color=RED, linewidth=0.8, alpha=0.5)
    axes.legend(frameon=False, loc="upper right")
    axes.set_title(f"{numbers['model']}: what a budget buys", loc="left", color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
