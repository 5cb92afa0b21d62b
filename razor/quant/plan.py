"""A plan: which module of a model is held in which format.

The plan is data. It names every linear layer and embedding of the model by its full name, says what the
keys and values of attention are rounded to, and what everything else (norms, biases) is stored in. It
prints as readable YAML or JSON and is saved in every checkpoint and packed folder, so a model never has
to guess how it was quantized.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from razor.errors import RazorError, did_you_mean
from razor.quant.float16 import Float16
from razor.quant.format import Format


@dataclass(frozen=True)
class Placement:
    """Formats of one module: its weight and, for a linear layer, its input activations (None: untouched)."""

    weights: Format
    activations: Format | None = None


@dataclass(frozen=True)
class Plan:
    """Formats of a whole model.

    Attributes:
        modules: full module name -> formats.
        kv_cache: format of keys (after rotary embedding) and values; None: untouched.
        rest: format of every parameter that no module entry covers.
    """

    modules: Mapping[str, Placement]
    kv_cache: Format | None = None
    rest: Format = field(default_factory=Float16)

    def check(self, model: nn.Module) -> None:
        """Compare with a model (any device, also meta) before any work.

        Raises:
            RazorError: a module that is not there, cannot be quantized or whose shape a format cannot hold; a
                linear layer or embedding that the plan forgets; tied weights in two formats.
        """
        found = dict(model.named_modules())
        plannable = {name for name, module in found.items() if is_plannable(module)}
        for name, placement in self.modules.items():
            if name not in found:
                raise RazorError(f"The plan names '{name}', which the model lacks.{_near(name, plannable)}")
            if name not in plannable:
                kind = type(found[name]).__name__
                raise RazorError(
                    f"The plan names '{name}', a {kind}: only Linear and Embedding can be planned."
                )
            placement.weights.check(found[name].weight.shape, name)
            if placement.activations is not None:
                placement.activations.check((found[name].weight.shape[-1],), name)
        if missing := sorted(plannable - set(self.modules)):
            raise RazorError(f"The plan says nothing about {len(missing)} modules, first '{missing[0]}'.")
        self._check_tied(found)

    def _check_tied(self, found: Mapping[str, nn.Module]) -> None:
        first: dict[int, str] = {}
        for name, placement in self.modules.items():
            other = first.setdefault(id(found[name].weight), name)
            if placement.weights.spec() != self.modules[other].weights.spec():
                raise RazorError(
                    f"'{name}' and '{other}' share one weight but the plan gives them two formats."
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
            modules = {
                name: Placement(Format.from_spec(place["weights"]), _format(place["activations"]))
                for name, place in data["modules"].items()
            }
            return cls(modules, _format(data["kv_cache"]), Format.from_spec(data["rest"]))
        except (KeyError, AttributeError, TypeError) as error:
            raise RazorError(f"This is no plan ({type(error).__name__}: {error}).") from error


def is_plannable(module: nn.Module) -> bool:
    """Whether a plan has to say something about this module."""
    return isinstance(module, (nn.Linear, nn.Embedding))


def _near(name: str, names: set[str]) -> str:
    tail = did_you_mean(name, names)
    return tail if len(tail) < 300 else tail[:300].rsplit(",", 1)[0] + ", ..."


def _spec(format: Format | None) -> dict[str, Any] | None:
    return None if format is None else format.spec()


def _format(spec: Mapping[str, Any] | None) -> Format | None:
    return None if spec is None else Format.from_spec(spec)
