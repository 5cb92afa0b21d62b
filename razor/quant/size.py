"""How large a plan makes a model, without weights: exact bits from shapes.

Two accountings stand side by side. The *paper's* counts a trit as 1.58 bits and one 16-bit scale per group;
its ratio is 16 * parameters / stored bits over all parameters, a tied embedding counted once
(arXiv 2605.04062). The one *on disk* counts the bytes that the packed tensors really take (1.6 bits a trit,
rows padded to whole bytes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from razor.quant.anatomy import entrance_of, head_of, towers_of
from razor.quant.format import Format
from razor.quant.plan import Plan
from razor.quant.sites import sites


@dataclass(frozen=True)
class Size:
    """Stored size of some parameters.

    Attributes:
        parameters: their number.
        code_bits: bits of their codes (paper's accounting).
        side_bits: bits of all beside them: scales, zero points, maps of rows.
        bytes_disk: bytes of the packed tensors.
    """

    parameters: int = 0
    code_bits: float = 0.0
    side_bits: float = 0.0
    bytes_disk: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(
            self.parameters + other.parameters,
            self.code_bits + other.code_bits,
            self.side_bits + other.side_bits,
            self.bytes_disk + other.bytes_disk,
        )

    @property
    def bits(self) -> float:
        """All stored bits by the paper's accounting."""
        return self.code_bits + self.side_bits

    @property
    def bits_per_weight(self) -> float:
        """Stored bits / parameters."""
        return self.bits / self.parameters if self.parameters else math.nan

    @property
    def ratio_paper(self) -> float:
        """Compression against 16 bits a parameter, by the paper's accounting."""
        return 16 * self.parameters / self.bits

    @property
    def ratio_disk(self) -> float:
        """Compression against 16 bits a parameter, by the bytes of the packed tensors."""
        return 2 * self.parameters / self.bytes_disk


@dataclass(frozen=True)
class ModelSize:
    """Sizes by the three parts that the paper treats differently, and of towers beside the decoder.

    Attributes:
        linear: the decoder's linear weights; their mean code bits are the nominal width (2.79, 1.88, ...).
        embedding: embedding and output head.
        rest: norms and biases.
        towers: all of what sees and hears, by name.
    """

    linear: Size
    embedding: Size
    rest: Size
    towers: Mapping[str, Size] = field(default_factory=dict)

    @property
    def decoder(self) -> Size:
        """Everything but the towers."""
        return self.linear + self.embedding + self.rest

    @property
    def total(self) -> Size:
        """Everything."""
        return sum(self.towers.values(), self.decoder)

    @property
    def code_bits(self) -> float:
        """Mean code bits over the decoder's linear weights, the nominal width."""
        return self.linear.code_bits / self.linear.parameters if self.linear.parameters else math.nan


@dataclass(frozen=True)
class StoredParameter:
    """One parameter of a model as a plan stores it.

    Attributes:
        name: its full name; of a tied one, the first.
        aliases: the other names under which the model has it.
        shape: its own shape.
        matrix: the shape that its format sees.
        part: "linear", "embedding" (output head included) or "rest".
        format: what it is stored in.
        size: what it takes.
        tower: the tower that it belongs to; None: to the decoder.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...]
    matrix: tuple[int, ...]
    part: str
    format: Format
    size: Size
    tower: str | None = None


def stored_parameters(model: nn.Module, plan: Plan) -> list[StoredParameter]:
    """Every parameter of `model` (any device, also meta) under `plan`, once, in the model's order."""
    names: dict[int, list[str]] = {}
    parameters: dict[int, nn.Parameter] = {}
    # scales that a quantized model learns are counted where they are stored, as a part of their weight
    formats = [m for m in model.modules() if isinstance(m, Format)]
    learned = {id(p) for own in formats for p in own.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in learned:
            continue
        names.setdefault(id(parameter), []).append(name)
        parameters.setdefault(id(parameter), parameter)
    planned = {
        id(site.weight): (site, plan.modules[name].weights)
        for name, site in sites(model).items()
        if name in plan.modules
    }
    embeddings, sizes = _embeddings(model), _Sizes()
    towers = {id(p): name for name, tower in towers_of(model).items() for p in tower.parameters()}
    stored = []
    for key, parameter in parameters.items():
        shape, (first, *others) = tuple(parameter.shape), names[key]
        part, format, seen = "rest", plan.rest, shape
        if key in planned:
            site, format = planned[key]
            part, seen = "embedding" if key in embeddings else "linear", site.shape
        size = sizes(format, seen)
        stored.append(StoredParameter(first, tuple(others), shape, seen, part, format, size, towers.get(key)))
    return stored


def sizes_by_parameter(model: nn.Module, plan: Plan) -> dict[str, Size]:
    """Size of each parameter of `model` (any device, also meta) by its full name; a tied one has its first."""
    return {stored.name: stored.size for stored in stored_parameters(model, plan)}


def measure(model: nn.Module, plan: Plan) -> ModelSize:
    """Size of `model` (any device, also meta) under `plan`; each parameter is counted once."""
    parts = {"linear": Size(), "embedding": Size(), "rest": Size()}
    towers = {name: Size() for name in towers_of(model)}
    for stored in stored_parameters(model, plan):
        if stored.tower is None:
            parts[stored.part] += stored.size
        else:
            towers[stored.tower] += stored.size
    return ModelSize(**parts, towers=towers)


def _embeddings(model: nn.Module) -> set[int]:
    """The ends of a model: token embeddings or what reads the pixels, and the output head."""
    head: Any = head_of(model)
    tables: list[Any] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    ends = [*tables, *entrance_of(model), *([] if head is None else [head])]
    return {id(end._parameters["weight"]) for end in ends if "weight" in end._parameters}


class _Sizes:
    """Sizes by format and shape: the hundreds of matrices of a large model are of few kinds."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...]], Size] = {}

    def __call__(self, format: Format, shape: tuple[int, ...]) -> Size:
        key = (id(format), shape)  # the plan keeps its formats alive
        if key not in self._known:
            bits = format.code_bits(shape), format.side_bits(shape)
            self._known[key] = Size(math.prod(shape), *bits, format.packed_bytes(shape))
        return self._known[key]
