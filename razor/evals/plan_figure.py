"""The figure of a plan: bits by layer and kind of matrix, and what each kind weighs.

Rows are kinds of matrices, columns are layers. What there is once (embedding, head) is one bar across. The
colour is code bits on a logarithmic scale, the same in every figure, so that two plans can be laid side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.evals.figures import GREY, INK
from razor.evals.plan_lines import PlanLine
from razor.quant import Size
from razor.storage import atomic_write

if TYPE_CHECKING:
    from razor.evals.plan_table import PlanTable

FEWEST, MOST, MAP = 1.25, 16.0, "inferno_r"
MOST_FORMATS = 8


@dataclass
class _Kind:
    """A row of the figure: matrices that differ only in their layer."""

    name: str
    layers: dict[int, Size] = field(default_factory=dict)  # empty: there is one, outside of the layers
    whole: Size = field(default_factory=Size)

    @property
    def bits(self) -> float:
        return self.whole.code_bits / self.whole.parameters


def draw_plan(table: PlanTable, path: Path) -> None:
    """Draw a plan (PNG)."""
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    lines = [line for line in table.lines if line.part != "rest" and line.tied_to is None]
    kinds = _kinds(lines)
    for line in table.lines:
        for kind in kinds:
            if kind.name == line.tied_to:
                kind.name += f" = {line.name}"
    figure = Figure(figsize=(11, 1.9 + 0.42 * len(kinds)), layout="constrained")
    heat, bars = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    _draw_heat(heat, kinds)
    _draw_bars(bars, kinds, table.size.total.bytes_disk)
    total = table.size.total
    figure.suptitle(
        f"{table.model}, {table.quant} ({table.w_a_kv}): {total.bits_per_weight:.2f} bits per weight, "
        f"{total.bytes_disk / 1e6:,.0f} MB, {total.ratio_paper:.2f} times smaller than 16 bits",
        x=0.01,
        ha="left",
        color=INK,
    )
    _draw_legend(figure, heat, lines)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def _kinds(lines: Iterable[PlanLine]) -> list[_Kind]:
    kinds: dict[tuple[str, ...], _Kind] = {}
    for line in lines:
        parts = line.name.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        key: tuple[str, ...] = (line.name,)
        if at is not None:
            key = ".".join(parts[:at]), ".".join(_blank(parts[at + 1 :]))
        kind = kinds.setdefault(key, _Kind(key[-1] or key[0]))
        kind.whole += line.size
        if at is not None:
            layer = int(parts[at])
            kind.layers[layer] = kind.layers.get(layer, Size()) + line.size
    stacks = {key[0] for key in kinds if len(key) == 2}
    if len(stacks) > 1:  # say which
        for key, kind in kinds.items():
            kind.name = ".".join(key)
    return list(kinds.values())


def _blank(parts: list[str]) -> list[str]:
    """Experts of a layer are one kind: their mean is shown."""
    return ["*" if part.isdecimal() else part for part in parts]


def _colour(bits: float) -> Any:
    import matplotlib

    place = math.log(min(max(bits, FEWEST), MOST) / FEWEST) / math.log(MOST / FEWEST)
    return matplotlib.colormaps[MAP](0.04 + 0.92 * place)


def _draw_heat(axes: Any, kinds: list[_Kind]) -> None:
    from matplotlib.ticker import MaxNLocator

    last = max((layer for kind in kinds for layer in kind.layers), default=0)
    for row, kind in enumerate(kinds):
        cells = kind.layers or {0: kind.whole}
        width = 1 if kind.layers else last + 1
        axes.barh(
            [row] * len(cells),
            width,
            left=[layer - 0.5 for layer in cells],
            height=0.86,
            color=[_colour(size.code_bits / size.parameters) for size in cells.values()],
            edgecolor="white",
            linewidth=0.8 if last < 40 else 0.3,
        )
        axes.text(
            last + 0.5 + 0.012 * (last + 1), row, f"{kind.bits:.2f}", va="center", fontsize=9, color=INK
        )
    axes.text(last + 0.5 + 0.012 * (last + 1), -0.75, "code bits", va="center", fontsize=9, color=GREY)
    axes.set_xlim(-0.5, last + 0.5 + 0.07 * (last + 1))
    axes.set_ylim(len(kinds) - 0.5, -1.1)
    axes.set_yticks(range(len(kinds)), [kind.name for kind in kinds])
    ticks = MaxNLocator(nbins=12, integer=True, steps=[1, 2, 5, 10]).tick_values(0, max(last, 1))
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= last])
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_bars(axes: Any, kinds: list[_Kind], all_bytes: int) -> None:
    sizes = [kind.whole.bytes_disk / 1e6 for kind in kinds]
    axes.barh(range(len(kinds)), sizes, height=0.6, color=[_colour(kind.bits) for kind in kinds])
    for row, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        share = kind.whole.bytes_disk / all_bytes
        axes.annotate(
            f"{size:,.4g} MB ({share:.0%})",
            (size, row),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, 1.7 * max(sizes))
    axes.set_xticks([])
    axes.set_xlabel("on disk, all layers together")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_legend(figure: Any, axes: Any, lines: list[PlanLine]) -> None:
    """Which colour is which format or, if there are too many, which colour is how many bits."""
    from matplotlib.patches import Patch

    formats: dict[str, float] = {}
    for line in lines:
        formats.setdefault(line.weights, line.size.code_bits / line.size.parameters)
    if len(formats) <= MOST_FORMATS:
        known = {
            f"{bits:.3g} bits: {name}": bits for name, bits in sorted(formats.items(), key=lambda x: x[1])
        }
    else:
        known = {f"{bits:g} bits": bits for bits in (1.58, 2, 3, 4, 6, 8, 16)}
    figure.legend(
        handles=[Patch(color=_colour(bits), label=text) for text, bits in known.items()],
        loc="outside lower left",
        ncols=4,
        frameon=False,
        fontsize=9,
    )
