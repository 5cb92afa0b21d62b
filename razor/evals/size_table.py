"""`razor size`: what a recipe makes of a model, in bits and bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from razor.models import ModelSource
from razor.quant import ModelSize, measure
from razor.recipe import PlanFile, QuantRecipe


def size_summary(source: ModelSource, recipe: QuantRecipe | PlanFile) -> dict[str, Any]:
    """The figures of `razor size json=true`."""
    total = _measure(source, recipe).total
    return {
        "model": source.name,
        "quant": recipe.name,
        "bits_per_weight": round(total.bits_per_weight, 4),
        "ratio_paper": round(total.ratio_paper, 4),
        "ratio_disk": round(total.ratio_disk, 4),
        "bytes_disk": total.bytes_disk,
        "parameters": total.parameters,
    }


def size_table(source: ModelSource, recipe: QuantRecipe | PlanFile) -> str:
    """A table for people."""
    size = _measure(source, recipe)
    lines = [
        f"{source.name}, {recipe.name} ({recipe.w_a_kv}): {size.code_bits:.2f} code bits in the decoder",
        "",
        f"{'':14s}{'parameters':>14s}{'code bits':>11s}{'bits/weight':>13s}{'MB packed':>11s}",
    ]
    parts = {
        "linear": size.linear,
        "embedding": size.embedding,
        "norms, biases": size.rest,
        **{f"{name} tower": tower for name, tower in size.towers.items()},
        "all": size.total,
    }
    for name, part in parts.items():
        code = part.code_bits / max(1, part.parameters)
        lines.append(
            f"{name:14s}{part.parameters:14,d}{code:11.3f}{part.bits_per_weight:13.3f}{part.bytes_disk / 1e6:11.2f}"
        )
    lines += [
        "",
        f"ratio by the paper's accounting  {size.total.ratio_paper:.2f}   (a trit counted as 1.58 bits)",
        f"ratio by bytes on disk           {size.total.ratio_disk:.2f}   ({size.total.bytes_disk:,d} bytes)",
    ]
    return "\n".join(lines)


def sizes_markdown(pairs: Iterable[tuple[ModelSource, QuantRecipe | PlanFile]]) -> str:
    """A Markdown table for documents: a line for each model under a recipe."""
    lines = [
        "| model | quant | code bits | bits per weight | ratio (paper) | ratio (disk) | MB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for source, recipe in pairs:
        size = _measure(source, recipe)
        total = size.total
        figures = (size.code_bits, total.bits_per_weight, total.ratio_paper, total.ratio_disk)
        cells = (source.name, recipe.name, *(f"{x:.2f}" for x in figures), f"{total.bytes_disk / 1e6:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _measure(source: ModelSource, recipe: QuantRecipe | PlanFile) -> ModelSize:
    skeleton = source.skeleton()
    return measure(skeleton, recipe.plan(skeleton))
