"""`razor plan`: which matrix of a model gets what, and what it takes, from shapes alone.

Every figure stands in two accountings, as in `razor size`: bits by the paper's (a trit is 1.58 bits) and bytes
as the packed tensors are stored. The bytes of all lines add up to the weights of the packed folder.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.errors import RazorError
from razor.evals.format_names import format_name
from razor.evals.plan_lines import PlanLine, folded, plan_lines
from razor.models import ModelSource
from razor.models.attention import attention_layers
from razor.quant import Float16, Format, ModelSize, Size, measure
from razor.quant.anatomy import reads_images
from razor.recipe import PlanFile, QuantRecipe
from razor.storage import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class KVCache:
    """What a model remembers of each token of its context.

    Attributes:
        format: of keys and values, in a few words.
        bytes_per_token: of all layers.
        bytes_per_token_16bit: the same in 16 bits.
    """

    format: str
    bytes_per_token: int
    bytes_per_token_16bit: int


class PlanTable:
    """A model under a recipe, planned and measured on the meta device.

    Raises:
        RazorError: the recipe does not fit the model.
    """

    def __init__(self, source: ModelSource, recipe: QuantRecipe | PlanFile) -> None:
        model = source.skeleton()
        self.model, self.quant = source.name, recipe.name
        self.plan = recipe.plan(model)
        self.w_a_kv = recipe.w_a_kv
        self.lines = plan_lines(model, self.plan)
        self.size: ModelSize = measure(model, self.plan)
        self.kv_cache = _kv_cache(model, self.plan.kv_cache)

    def summary(self) -> dict[str, Any]:
        """The figures of `razor plan json=true`."""
        total = self.size.total
        return {
            "model": self.model,
            "quant": self.quant,
            "w_a_kv": self.w_a_kv,
            "code_bits": round(self.size.code_bits, 4),
            "bits_per_weight": round(total.bits_per_weight, 4),
            "ratio_paper": round(total.ratio_paper, 4),
            "ratio_disk": round(total.ratio_disk, 4),
            "bytes_disk": total.bytes_disk,
            "parameters": total.parameters,
            "towers": {name: size_figures(size) for name, size in self.size.towers.items()},
            "kv_cache": vars(self.kv_cache) if self.kv_cache else None,
            "modules": [self._figures(line) for line in self.lines],
        }

    def text(self, full: bool = False) -> str:
        """A table for people: layers that are alike in one line, or every parameter."""
        small = [] if full else [line for line in self.lines if _is_small(line)]
        lines = self.lines if full else folded(line for line in self.lines if not _is_small(line))
        rows = [self._row(line) for line in lines]
        if small:
            formats = ", ".join(sorted({line.weights for line in small}))
            size = sum((line.size for line in small), Size())
            rows.append(("norms, biases", f"{len(small)} tensors", formats, "-", *self._numbers(size)))
        total = self.size.total
        if self.size.towers:
            parts = {"decoder": self.size.decoder} | {f"{n} tower": s for n, s in self.size.towers.items()}
            rows += [(name, f"{s.parameters:,d}", "", "", *self._numbers(s)) for name, s in parts.items()]
        rows.append(("all", f"{total.parameters:,d}", "", "", *self._numbers(total)))
        heads = ("module", "shape", "weights", "inputs", "code bits", "bits/weight", self._unit[0], "share")
        title = (
            f"{self.model}, {self.quant} ({self.w_a_kv}): {self.size.code_bits:.2f} code bits in the decoder"
        )
        return "\n".join([title, "", *_aligned([heads, *rows]), "", *self._ending])

    def write(self, folder: Path) -> list[Path]:
        """Write plan.yaml (what `quant=plan` reads), plan.csv (every parameter) and plan.png into a folder.

        Raises:
            RazorError: the disk is full, or the folder is a file.
        """
        from razor.evals.plan_figure import draw_plan

        if folder.exists() and not folder.is_dir():
            raise RazorError(f"out='{folder}' is a file: choose a folder for the plan.")
        paths = [folder / f"plan.{ending}" for ending in ("yaml", "csv", "png")]
        self.plan.save(paths[0])
        with atomic_write(paths[1]) as temporary, temporary.open("w", newline="") as stream:
            figures = [self._figures(line) for line in self.lines]
            writer = csv.DictWriter(stream, list(figures[0]), lineterminator="\n")
            writer.writeheader()
            for row in figures:
                writer.writerow(row | {"shape": "x".join(map(str, row["shape"]))})
        draw_plan(self, paths[2])
        return paths

    def _figures(self, line: PlanLine) -> dict[str, Any]:
        size = line.size
        return {
            "module": line.name,
            "part": line.part,
            "shape": list(line.shape),
            "weights": line.weights,
            "activations": line.activations,
            "parameters": size.parameters,
            "code_bits": _rounded(size.code_bits, size.parameters),
            "bits_per_weight": _rounded(size.bits, size.parameters),
            "bytes_disk": size.bytes_disk,
            "share": round(size.bytes_disk / self.size.total.bytes_disk, 6),
            "tied_to": line.tied_to,
        }

    def _row(self, line: PlanLine) -> tuple[str, ...]:
        shape = ("" if line.count == 1 else f"{line.count} x ") + str(list(line.shape))
        if line.tied_to is not None:
            return (line.name, shape, f"= {line.tied_to}", line.activations, "", "", "", "")
        return (line.name, shape, line.weights, line.activations, *self._numbers(line.size))

    @property
    def _unit(self) -> tuple[str, float]:
        return ("MB", 1e6) if self.size.total.bytes_disk > 1e7 else ("kB", 1e3)

    def _numbers(self, size: Size) -> tuple[str, ...]:
        code = size.code_bits / size.parameters
        stored, share = size.bytes_disk / self._unit[1], size.bytes_disk / self.size.total.bytes_disk
        return (f"{code:.3f}", f"{size.bits_per_weight:.3f}", f"{stored:,.2f}", f"{share:.1%}")

    @property
    def _ending(self) -> list[str]:
        total, cache = self.size.total, self.kv_cache
        lines = [
            f"ratio by the paper's accounting  {total.ratio_paper:.2f}   (a trit counted as 1.58 bits)",
            f"ratio by bytes on disk           {total.ratio_disk:.2f}   ({total.bytes_disk:,d} bytes)",
        ]
        if cache is None:
            return [*lines, "KV cache                         none: no attention layer keeps keys and values"]
        now, plain = cache.bytes_per_token, cache.bytes_per_token_16bit
        kept = f"{cache.format}: {now:,d} bytes a token of context, {plain:,d} in 16 bits"
        return [*lines, f"KV cache                         {plain / now:.2f}   ({kept})"]


def _kv_cache(model: PreTrainedModel, format: Format | None) -> KVCache | None:
    """Of a model's attention layers: two rows of head_dim numbers for each KV head."""
    if reads_images(model):
        return None
    try:
        configs = [(layer, layer.config) for layer in attention_layers(model).values()]
    except RazorError:
        return None
    taken = {True: 0, False: 0}
    for layer, config in configs:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(layer, "head_dim", None) or config.hidden_size // config.num_attention_heads
        for quantized in taken:
            stored = format if quantized and format is not None else Float16()
            taken[quantized] += 2 * stored.packed_bytes((heads, width))
    return KVCache("16 bit" if format is None else format_name(format), taken[True], taken[False])


def size_figures(size: Size) -> dict[str, Any]:
    """A size as plain data."""
    return {
        "parameters": size.parameters,
        "code_bits": _rounded(size.code_bits, size.parameters),
        "bits_per_weight": _rounded(size.bits, size.parameters),
        "bytes_disk": size.bytes_disk,
    }


def _is_small(line: PlanLine) -> bool:
    """Norms and biases: too many and too light for a line each."""
    return line.part == "rest" and len(line.shape) < 2


def _rounded(bits: float, parameters: int) -> float | None:
    return round(bits / parameters, 4) if parameters else None


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width: words to the left, figures (the last four) to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = len(widths) - 4
    return [
        "  ".join(
            cell.ljust(width) if index < words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
