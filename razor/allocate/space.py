"""What an allocation may decide: which matrices, in which formats, and which of them together.

A `Target` is one weight of the decoder that the recipe leaves open; embedding, head, norms and whatever a pattern
of `overrides` or `exclude` names are settled. It has the options that its shape can hold and, if a plan is to fit
GGUF, that one of its block types holds exactly; then sizes are those of the type. Targets are decided together
(`Space.groups`) if they share a layer, with `granularity="block"`, or an input, with `coupled` (q, k and v; gate
and up), as runtimes with fused kernels want it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from razor.errors import RazorError
from razor.models import layers_of
from razor.quant import Float16, Format, ModelSize, Placement, Plan, Site, Size, sites
from razor.quant.size import stored_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GRANULARITIES = ("matrix", "row", "block")
TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Last names of layers that read the same input."""

REST_BITS = 32.0
"""Of a norm's or bias's number in a GGUF file, which keeps them in fp32."""


@dataclass(frozen=True)
class Held:
    """A format as a file type holds it.

    Attributes:
        format: the same codes and rule, perhaps with longer groups.
        type: name of the file type.
        bits: per weight, scales included.
    """

    format: Format
    type: str
    bits: float


Fit = Callable[[Format, int], Held | None]
"""(format, columns) -> how a file type holds it exactly; None: none does."""


@dataclass(frozen=True)
class Target:
    """A weight that is to be decided.

    Attributes:
        names: what a plan calls it; several if modules share it.
        site: of the first of them.
        formats: option -> format, for the options that it can be held in.
        types: option -> file type, if the plan is to fit one.
    """

    names: tuple[str, ...]
    site: Site
    formats: Mapping[str, Format]
    types: Mapping[str, str]

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def weights(self) -> int:
        """How many numbers it has."""
        return math.prod(self.site.shape)


@dataclass(frozen=True)
class Space:
    """All that can be decided about a model.

    Attributes:
        base: the plan with every target at 16 bits.
        targets: by name, in the model's order.
        groups: names of targets that are decided together.
        settled: size of everything but the targets.
        fit: None if sizes are those of Razor's own packed file.
    """

    base: Plan
    targets: Mapping[str, Target]
    groups: tuple[tuple[str, ...], ...]
    settled: ModelSize
    fit: Fit | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        model: PreTrainedModel,
        base: Plan,
        undecided: list[str],
        options: Mapping[str, Format],
        granularity: str = "matrix",
        coupled: bool = False,
        fit: Fit | None = None,
    ) -> Space:
        """The space of a model (any device, also meta).

        Args:
            model: whose weights are looked for.
            base: see the class.
            undecided: names of the sites to be decided.
            options: by name.
            granularity: of `GRANULARITIES`; "row" decides matrices here, and rows within them later.
            coupled: whether layers with one input are decided together.
            fit: how a file type holds a format.

        Raises:
            RazorError: there is nothing to decide, or a matrix that none of the options suits.
        """
        found = sites(model)
        by_weight: dict[int, list[str]] = {}
        for name in undecided:
            by_weight.setdefault(id(found[name].weight), []).append(name)
        if not by_weight:
            raise RazorError(
                "There is nothing to decide: every weight of the decoder has its format already."
            )
        targets = {}
        for names in by_weight.values():
            target = _target(tuple(names), found[names[0]], options, fit)
            targets[target.name] = target
        groups = _groups(model, list(targets), granularity, coupled)
        for group in groups:
            _check_shared(group, targets)
        return cls(base, targets, groups, _settled(model, base, set(by_weight), fit), fit)

    @property
    def weights(self) -> int:
        """Numbers in all targets."""
        return sum(target.weights for target in self.targets.values())

    def size(self, name: str, format: Format) -> Size:
        """What a target takes in a format."""
        return _size(format, self.targets[name].site.shape, self.fit)

    def total(self, chosen: Mapping[str, Format]) -> ModelSize:
        """Size of the model with a format for each target."""
        linear = sum((self.size(name, format) for name, format in chosen.items()), self.settled.linear)
        return ModelSize(linear, self.settled.embedding, self.settled.rest)

    def plan(self, chosen: Mapping[str, Format]) -> Plan:
        """The plan with a format for each target, under all of its names."""
        modules = dict(self.base.modules)
        for target in self.targets.values():
            for name in target.names:
                modules[name] = Placement(chosen[target.name], modules[name].activations)
        return Plan(modules, self.base.kv_cache, self.base.rest)

    def shared_options(self, group: tuple[str, ...]) -> list[str]:
        """Options that every target of a group can have."""
        return shared(group, self.targets)


def shared(group: tuple[str, ...], targets: Mapping[str, Target]) -> list[str]:
    """Options that every target of a group can have, in order."""
    first, *others = (targets[name].formats for name in group)
    return [option for option in first if all(option in formats for formats in others)]


def _target(names: tuple[str, ...], site: Site, options: Mapping[str, Format], fit: Fit | None) -> Target:
    formats: dict[str, Format] = {}
    types: dict[str, str] = {}
    refused = ""
    for option, format in options.items():
        held = None if fit is None or isinstance(format, Float16) else fit(format, site.shape[1])
        if fit is not None and held is None and not isinstance(format, Float16):
            continue
        try:
            (held.format if held else format).check(site.shape, names[0])
        except RazorError as error:
            refused = f" {error}"
            continue
        formats[option] = held.format if held else format
        types |= {option: held.type} if held else {}
    if not formats:
        why = refused or f" No GGUF type holds one of them exactly in rows of {site.shape[1]}."
        raise RazorError(f"options=[{', '.join(options)}]: '{names[0]}' can have none of them.{why}")
    return Target(names, site, formats, types)


def _groups(
    model: PreTrainedModel, names: list[str], granularity: str, coupled: bool
) -> tuple[tuple[str, ...], ...]:
    """Targets that are decided together, each in one group, in the model's order."""
    own = {id(module): name for name, module in model.named_modules()}
    blocks = [f"{own[id(block)]}." for block in layers_of(model)] if granularity == "block" else []
    found: dict[str, list[str]] = {}
    for name in names:
        key = next((block for block in blocks if name.startswith(block)), name)
        parent, _, last = name.rpartition(".")
        together = next((set_ for set_ in TOGETHER if last in set_), None) if coupled else None
        if key == name and together is not None:
            key = f"{parent}.{'+'.join(together)}"
        found.setdefault(key, []).append(name)
    return tuple(tuple(group) for group in found.values())


def _check_shared(group: tuple[str, ...], targets: Mapping[str, Target]) -> None:
    if not shared(group, targets):
        each = "; ".join(f"'{name}' {', '.join(targets[name].formats)}" for name in group)
        raise RazorError(f"Decided together, but with no option in common: {each}.")


def _size(format: Format, shape: tuple[int, ...], fit: Fit | None) -> Size:
    count = math.prod(shape)
    if fit is None:
        return Size(count, format.code_bits(shape), format.side_bits(shape), format.packed_bytes(shape))
    held = None if isinstance(format, Float16) else fit(format, shape[-1])
    if held is None and not isinstance(format, Float16):
        raise RazorError(f"No GGUF type holds {type(format).__name__} exactly in rows of {shape[-1]}.")
    bits = count * (16.0 if held is None else held.bits)
    return Size(count, bits, 0.0, math.ceil(bits / 8))


def _settled(model: PreTrainedModel, base: Plan, undecided: set[int], fit: Fit | None) -> ModelSize:
    """Size of what is not to be decided: the rest of `measure`, or of a GGUF file's tensors."""
    own = {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}
    parts: Any = {"linear": Size(), "embedding": Size(), "rest": Size()}
    for stored in stored_parameters(model, base):
        if own[stored.name] in undecided:
            continue
        size = stored.size
        if fit is not None and stored.part == "rest":
            bits = REST_BITS * size.parameters
            size = Size(size.parameters, bits, 0.0, math.ceil(bits / 8))
        elif fit is not None:
            size = _size(stored.format, stored.matrix, fit)
        parts[stored.part] += size
    return ModelSize(**parts)
