"""Formats by kind of module: decoder weights, embedding, head, activations, KV cache, and exceptions by name.

`W2.79-A8-KV8` is a recipe's short name: width of the decoder's linear weights, of their input activations,
and of keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from razor.errors import RazorError
from razor.quant import Float16, Format, Placement, Plan, Site, sites
from razor.quant.anatomy import entrance_of, head_of, reads_images, tied
from razor.recipe.exceptions import ModelException
from razor.recipe.override import Override, matching
from razor.recipe.plan_file import fitting, mean_width
from razor.spec import construct, located, read

_Weights = dict[str, tuple[Format, str]]
_Inputs = dict[str, tuple[Format | None, str]]
"""By site: a format, and the path in the recipe that chose it."""


class QuantRecipe:
    """Formats by kind of module, and exceptions.

    Args:
        name: for tables and file names.
        weights: the decoder's linear weights.
        embedding: token embedding; of an image classifier or a tower what reads pixels or sound (first layer).
        activations: inputs of every linear layer, the head's included; None or "none" leaves them alone.
        kv_cache: keys (after rotary embedding) and values; None or "none" leaves them alone. An image classifier
            keeps none from one pass to the next, so it has no such format, and its short name ends before it.
        head: output head; None is the embedding's format, the only choice when the two share their weight.
        rest: norms, biases and what is excluded; None is bfloat16.
        overrides: by pattern of module names (see `override`), an `Override` or a mapping of its fields; where
            several match, the last one counts. Routers of experts and other weights that are no layers keep
            `rest`'s format unless a pattern matches nothing else.
        exclude: patterns of modules that are not compressed: weights in `rest`'s format, inputs left alone.
        exceptions: of the model rather than of the recipe, by pattern, a `ModelException` or a mapping of its
            fields: other groups where the model's own divides no row. They come before `overrides`.

    Raises:
        RazorError: what is no format, or not an override.
    """

    def __init__(
        self,
        name: str,
        weights: Format,
        embedding: Format,
        activations: Format | Literal["none"] | None,
        kv_cache: Format | Literal["none"] | None,
        head: Format | None = None,
        rest: Float16 | None = None,
        overrides: Mapping[str, Any] | None = None,
        exclude: Sequence[str] | None = None,
        exceptions: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.weights = _required("weights", weights)
        self.embedding = _required("embedding", embedding)
        self.activations = _optional("activations", activations)
        self.kv_cache = _optional("kv_cache", kv_cache)
        self.head = _optional("head", head)
        self.rest = _required("rest", Float16() if rest is None else rest)
        self.overrides = {
            pattern: other if isinstance(other, Override) else construct(Override, other, _path(pattern))
            for pattern, other in read(Mapping[str, Any], overrides or {}, "quant.overrides").items()
        }
        self.exceptions = {
            pattern: construct(ModelException, other, f"quant.exceptions.{pattern}")
            if isinstance(other, Mapping)
            else other
            for pattern, other in read(Mapping[str, Any], exceptions or {}, "quant.exceptions").items()
        }
        self.exclude = list(read(Sequence[str], exclude or [], "quant.exclude"))
        self._mean_width: str | None = None
        self._remembers = True

    @property
    def w_a_kv(self) -> str:
        """Widths of weights, activations and KV cache, as in 'W2.79-A8-KV8'.

        With exceptions that of the weights is the decoder's mean once a model was planned; before, a star tells.
        """
        activations, kv_cache = (x.label if x else "16" for x in (self.activations, self.kv_cache))
        star = "*" if self.overrides or self.exclude else ""
        cache = f"-KV{kv_cache}" if self._remembers else ""
        return f"W{self._mean_width or self.weights.label + star}-A{activations}{cache}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, the `quant` section of a recipe; the name is the recipe's."""
        overrides = {}
        for pattern, other in self.overrides.items():
            given = {"weights": other.weights, "activations": other.activations}
            overrides[pattern] = {key: _spec(value) for key, value in given.items() if value != "keep"}
        exceptions = {pattern: other.to_dict() for pattern, other in self.exceptions.items()}
        return {
            "weights": self.weights.spec(),
            "embedding": self.embedding.spec(),
            "head": _spec(self.head),
            "activations": _spec(self.activations),
            "kv_cache": _spec(self.kv_cache),
            "rest": self.rest.spec(),
            "overrides": overrides,
            "exclude": list(self.exclude),
            **({"exceptions": exceptions} if exceptions else {}),
        }

    def plan(self, model: nn.Module) -> Plan:
        """The plan for a model (any device, also meta).

        Patterns look among what is planned anyway; only one that matches nothing there may name another weight
        of two dimensions, such as the router of a mixture.

        Raises:
            RazorError: a format cannot hold a weight, or a pattern matches none; the text names them.
        """
        found = sites(model)
        weights, inputs = self._by_kind(found, model)
        names = list(weights)
        others = [name for name in found if name not in weights]
        self._except(weights, inputs)
        for pattern, other in self.overrides.items():
            at = _path(pattern)
            chosen = matching(pattern, names, at, others)
            if isinstance(other.activations, Format) and all(found[name].inputs is None for name in chosen):
                raise RazorError(f"{at}.activations: '{chosen[0]}' takes no activations to quantize.")
            for name in chosen:
                if isinstance(other.weights, Format):
                    weights[name] = other.weights, f"{at}.weights"
                if other.activations != "keep" and found[name].inputs is not None:
                    inputs[name] = _optional("activations", other.activations), f"{at}.activations"
        for index, pattern in enumerate(self.exclude):
            for name in matching(pattern, names, f"quant.exclude[{index}]", others):
                weights[name], inputs[name] = (self.rest, "quant.rest"), (None, "")
        _check(found, weights, inputs)
        modules = {
            name: Placement(weights[name][0], inputs.get(name, (None,))[0])
            for name in found
            if name in weights
        }
        self._remembers = not reads_images(model)
        cache = self.kv_cache if self._remembers else None
        plan = fitting(Plan(modules, cache, self.rest), model, "quant")
        if self.overrides or self.exclude:
            self._mean_width = mean_width(model, plan)
        return plan

    def _by_kind(self, found: Mapping[str, Site], model: nn.Module) -> tuple[_Weights, _Inputs]:
        """Formats before any exception, each with its path in the recipe."""
        head, entrance = self._head(model), entrance_of(model)
        weights: _Weights = {}
        inputs: _Inputs = {}
        for name, site in found.items():
            if site.kind == "other":
                continue
            first = site.kind == "embedding" or any(site.module is part for part in entrance)
            if first or (site.module is head and self.head is None):
                weights[name] = self.embedding, "quant.embedding"
            elif site.module is head and self.head is not None:
                weights[name] = self.head, "quant.head"
            else:
                weights[name] = self.weights, "quant.weights"
            if site.inputs is not None:
                inputs[name] = self.activations, "quant.activations"
        return weights, inputs

    def _except(self, weights: _Weights, inputs: _Inputs) -> None:
        """Follow the model's exceptions; formats that were one object stay one."""
        names = list(weights)
        for pattern, other in self.exceptions.items():
            at = f"quant.exceptions.{pattern}"
            made: dict[int, Format] = {}
            for name in matching(pattern, names, at):
                for chosen in (weights, inputs):
                    format = chosen.get(name, (None,))[0]
                    if format is not None:
                        made.setdefault(id(format), other.applied(format, at))
                        chosen[name] = made[id(format)], at
                if other.inputs == "none" and name in inputs:
                    inputs[name] = None, at

    def _head(self, model: nn.Module) -> nn.Module | None:
        if tied(model) and self.head is not None and self.head.spec() != self.embedding.spec():
            raise RazorError(
                "quant.head differs from quant.embedding, but this model's head and embedding share one weight: "
                "quant.head must be null."
            )
        return head_of(model)


def _check(found: Mapping[str, Site], weights: _Weights, inputs: _Inputs) -> None:
    """Raise RazorError, with the path of the format, if one cannot hold what it was chosen for."""
    for name, site in found.items():
        if name not in weights or site.fixed is not None:
            continue
        format, at = weights[name]
        with located(at):
            format.check(site.shape, name)
        activations, at = inputs.get(name, (None, ""))
        if activations is not None and site.inputs is not None:
            with located(at):
                activations.check_tokens(site.inputs, name)


def _path(pattern: str) -> str:
    return f"quant.overrides.{pattern}"


def _spec(format: Format | str | None) -> dict[str, Any] | None:
    return format.spec() if isinstance(format, Format) else None


def _required(key: str, format: object) -> Format:
    if not isinstance(format, Format):
        raise RazorError(
            f"quant.{key}='{format}' is no number format; choose one: quant/format@quant.{key}=int4."
        )
    return format


def _optional(key: str, format: object) -> Format | None:
    return None if format in (None, "none") else _required(key, format)
