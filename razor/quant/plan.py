"""A plan: which weight of a model is held in which format.

The plan is data. It names every linear layer, embedding, convolution and stack of experts of the model by its
full name (see `razor.quant.sites`), says what the keys and values of attention are rounded to, and what
everything else (norms, biases) is stored in. It prints as readable YAML or JSON and is saved in every
checkpoint and packed folder, so a model never has to guess how it was quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from razor.errors import RazorError, did_you_mean
from razor.quant.float16 import Float16
from razor.quant.format import Format
from razor.quant.plan_file import plan_text, read_plan_file
from razor.quant.sites import Site, sites
from razor.spec import from_spec
from razor.storage import atomic_write


@dataclass(frozen=True)
class Placement:
    """Formats of one weight and of the activations it is multiplied with (None: untouched)."""

    weights: Format
    activations: Format | None = None


@dataclass(frozen=True)
class Plan:
    """Formats of a whole model.

    Attributes:
        modules: full module name, or parameter name of stacked experts -> formats.
        kv_cache: format of keys (after rotary embedding) and values; None: untouched.
        rest: format of every parameter that no entry covers.
    """

    modules: Mapping[str, Placement]
    kv_cache: Format | None = None
    rest: Format = field(default_factory=Float16)

    def check(self, model: nn.Module) -> None:
        """Compare with a model (any device, also meta) before any work.

        Raises:
            RazorError: a name that is not there or can not be quantized, a shape that a format cannot hold;
                activations where there are none; a layer that the plan forgets; tied weights in two formats.
        """
        found = sites(model)
        if unknown := [name for name in self.modules if name not in found]:
            raise self._unknown(unknown[0], model, found, len(unknown))
        for name, placement in self.modules.items():
            _check_site(found[name], placement)
        needed = {name for name, site in found.items() if site.kind != "other"}
        if missing := sorted(needed - set(self.modules)):
            raise RazorError(f"The plan says nothing about {len(missing)} modules, first '{missing[0]}'.")
        self._check_tied(found)

    def _unknown(self, name: str, model: nn.Module, found: Mapping[str, Site], count: int) -> RazorError:
        modules = dict(model.named_modules())
        if name in modules:
            return RazorError(
                f"The plan names '{name}', a {type(modules[name]).__name__}: only linear layers, embeddings, "
                "convolutions, experts and other weights of two dimensions or more can be planned."
            )
        if count > 1:
            return RazorError(
                f"The plan names '{name}' and {count - 1} others of its {len(self.modules)} that the model lacks: "
                "is it the plan of another model?"
            )
        return RazorError(f"The plan names '{name}', which the model lacks.{_near(str(name), set(found))}")

    def _check_tied(self, found: Mapping[str, Site]) -> None:
        first: dict[int, str] = {}
        for name, placement in self.modules.items():
            other = first.setdefault(id(found[name].weight), name)
            if other == name:
                continue
            if placement.weights.spec() != self.modules[other].weights.spec():
                raise RazorError(
                    f"'{name}' and '{other}' share one weight but the plan gives them two formats."
                )
            if found[name].view != found[other].view:
                raise RazorError(
                    f"'{name}' and '{other}' share one weight but group it along different dimensions."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which `from_dict` builds the same plan."""
        return {
            "modules": {
                name: {"weights": place.weights.spec(), "activations": _spec(place.activations)}
                for name, place in self.modules.items()
            },
            "kv_cache": _spec(self.kv_cache),
            "rest": self.rest.spec(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`.

        Raises:
            RazorError: not a plan, or it names an unknown format.
        """
        try:
            _known(data, ("modules", "kv_cache", "rest"), "")
            for name, place in data["modules"].items():
                _known(place, ("weights", "activations"), f"modules.{name}.")
            modules = {
                name: Placement(
                    Format.from_spec(place["weights"], f"modules.{name}.weights"),
                    _format(place["activations"], f"modules.{name}.activations"),
                )
                for name, place in data["modules"].items()
            }
            rest = from_spec(Float16, data["rest"], "rest")
            return cls(modules, _format(data["kv_cache"], "kv_cache"), rest)
        except (KeyError, AttributeError, TypeError) as error:
            raise RazorError(f"This is no plan ({type(error).__name__}: {error}).") from error

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML that people can read and edit (see `razor.quant.plan_file`)."""
        with atomic_write(Path(path)) as temporary:
            temporary.write_text(plan_text(self.to_dict()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Inverse of `save`.

        Raises:
            RazorError: the file cannot be read or is no plan; the text names it.
        """
        data = read_plan_file(Path(path))
        try:
            return cls.from_dict(data)
        except RazorError as error:
            raise RazorError(f"'{path}': {error}") from error


def _check_site(site: Site, placement: Placement) -> None:
    if site.fixed is not None:
        if not isinstance(placement.weights, Float16) or placement.activations is not None:
            raise RazorError(
                f"'{site.name}' cannot be quantized: it is {site.fixed}. Leave it out: 16-bit weights, no "
                "activations (quant.exclude)."
            )
        return
    placement.weights.check(site.shape, site.name)
    if placement.activations is None:
        return
    if site.inputs is None:
        raise RazorError(f"'{site.name}' ({type(site.module).__name__}) takes no activations to quantize.")
    placement.activations.check_tokens(site.inputs, site.name)


def _known(data: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise RazorError for a key that nobody would read."""
    if not isinstance(data, Mapping):
        raise TypeError(f"{where.rstrip('.') or 'it'} is no mapping")
    for key in data:
        if key not in keys:
            raise RazorError(f"{where}{key} is unknown.{did_you_mean(str(key), keys)}")


def _near(name: str, names: set[str]) -> str:
    tail = did_you_mean(name, names)
    return tail if len(tail) < 300 else tail[:300].rsplit(",", 1)[0] + ", ..."


def _spec(format: Format | None) -> dict[str, Any] | None:
    return None if format is None else format.spec()


def _format(spec: Mapping[str, Any] | None, where: str) -> Format | None:
    return None if spec is None else Format.from_spec(spec, where)
