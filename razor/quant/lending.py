"""Layers that keep a forward pass of their own.

Not every layer is a plain linear map. A convolution pads and strides, Gemma's embedding scales what it looks
up, GPT-2's `Conv1D` stores its weight the other way round, a mixture of experts sorts tokens and multiplies
them group by group. Their code is right already, and it reads its weight as an attribute; so that is where
quantizing comes in. `lend` turns such a module, in place, into a subclass whose attribute *reads* as the
quantized weight. The parameter itself stays where it was: optimizers, ties and the names in `state_dict` see
the latent weight, the layer's code sees nothing but stored numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from razor.errors import RazorError

WEIGHTS, CODED, ACTIVATIONS = "weights", "coded", "activations"
"""What a submodule does for a weight: quantize the parameter; decode without one; quantize the input."""


def slot(role: str, attribute: str) -> str:
    """Name of the submodule with a role for a weight: just the role, if the weight is called `weight`."""
    return role if attribute == "weight" else f"{role}_{attribute}"


def lend(
    module: nn.Module,
    attribute: str,
    role: str,
    lender: nn.Module,
    compute_dtype: torch.dtype,
    kind: str = "other",
    activations: nn.Module | None = None,
) -> None:
    """Make a weight of `module` read as what `lender` gives, in place.

    Args:
        module: its code reads the weight as `self.<attribute>`.
        attribute: the weight's name.
        role: `WEIGHTS`, and `lender` is called with the parameter and a dtype; or `CODED`, with a dtype alone.
        lender: gives the weight.
        compute_dtype: of the weight as it is read.
        kind: see `razor.quant.sites.Site`.
        activations: quantizes what is multiplied with the weight, along its last dimension; None: nothing.
    """
    lender.train(module.training)  # a format may ask
    module.__class__ = _lending(type(module), (kind, attribute, role))  # type: ignore[arg-type]
    module.add_module(slot(role, attribute), lender)
    if activations is not None:
        activations.train(module.training)
        module.add_module(slot(ACTIVATIONS, attribute), activations)
    module.compute_dtype = compute_dtype  # type: ignore[assignment]


class Lending(nn.Module):
    """Mixin: some weights of this module read as their quantized selves."""

    compute_dtype: torch.dtype
    plain: tuple[type, tuple[tuple[str, str, str], ...]]
    """The module's class before, and what was lent since."""

    def lent(self, attribute: str, role: str) -> Tensor:
        """The weight that the module computes with, in the compute dtype."""
        lender: Any = self._modules[slot(role, attribute)]
        if role != WEIGHTS:
            return lender(self.compute_dtype)
        latent = self._parameters[attribute]
        if hasattr(
            latent, "full_tensor"
        ):  # a part of a sharded weight: who asks is FSDP2, and wants just that
            return latent  # type: ignore[return-value]
        return lender(latent, self.compute_dtype)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles: the class has no name to find it by, so it is made again."""
        return _revive, self.plain, self.__getstate__()


class LendingLayer(Lending):
    """Mixin for linear layers and convolutions, which take activations."""

    def quantized_input(self, x: Tensor) -> Tensor:
        """The input the layer computes with: quantized along its last dimension, or along its channels.

        A convolution's input [..., channels, *positions] is quantized position by position, so that none
        changes what is seen of another.
        """
        activations = self._modules.get(ACTIVATIONS)
        if activations is None:
            return x
        if not isinstance(self, _ConvNd):
            return activations(x)
        channels = -1 - len(self.kernel_size)
        return activations(x.movedim(channels, -1)).movedim(-1, channels)

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:
        """The layer's own forward pass."""
        return super().forward(self.quantized_input(x), *others, **options)


class LendingEmbedding(Lending):
    """Mixin for embeddings: the table is lent for the length of a forward pass only.

    At other times it is the parameter, which Transformers compares and ties anew.
    """

    computing = False

    def lent(self, attribute: str, role: str) -> Tensor:  # noqa: D102 - see Lending
        if attribute == "weight" and role == WEIGHTS and not self.computing:
            return self._parameters[attribute]  # type: ignore[return-value]
        return super().lent(attribute, role)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The embedding's own forward pass."""
        self.computing = True
        try:
            return super().forward(*arguments, **options)
        finally:
            self.computing = False


class LendingExperts(Lending):
    """Mixin for the stacked experts of a mixture, in whatever way Transformers multiplies them.

    The input of the first product is the module's, quantized once per token however many experts see it. That
    of the second arises inside: what follows the gate (or activation) function is quantized there.
    """

    config: Any

    def forward(self, x: Tensor, *others: Any, **options: Any) -> Any:
        """The experts' own forward pass.

        Raises:
            RazorError: an implementation that fuses the gate, where its result cannot be reached.
        """
        gate = "_apply_gate" if self.has_gate else "act_fn"
        outer, inner = (
            self._modules.get(slot(ACTIVATIONS, name))
            for name in ("gate_up_proj" if self.has_gate else "up_proj", "down_proj")
        )
        gating = getattr(self, gate)
        x = x if outer is None else outer(x)
        if inner is None:
            return super().forward(x, *others, **options)
        passed = []

        def quantized(*arguments: Tensor) -> Tensor:
            passed.append(True)
            return inner(gating(*arguments))

        self.__dict__[gate] = quantized  # found before the class's method and before submodules
        try:
            out = super().forward(x, *others, **options)
        finally:
            del self.__dict__[gate]
        if not passed and x.numel():
            raise RazorError(
                f"The experts implementation '{self.config._experts_implementation}' hides the inputs of "
                "down_proj, which the plan quantizes: call model.set_experts_implementation('grouped_mm')."
            )
        return out


MIXINS = {
    "linear": LendingLayer,
    "conv": LendingLayer,
    "embedding": LendingEmbedding,
    "experts": LendingExperts,
    "other": Lending,
}


@functools.cache
def _lending(kind: type, lent: tuple[str, str, str]) -> type:
    """The subclass of `kind` in which one more weight, (kind of site, attribute, role), is a property."""
    site, attribute, role = lent

    @torch.compiler.disable  # as are the quantizers: a graph break here, and no code of ours to guard
    def read(self: Lending) -> Tensor:
        try:
            return self.lent(attribute, role)
        except AttributeError as error:  # which nn.Module would take for: look among the parameters instead
            raise RuntimeError(f"Reading '{attribute}' of a {kind.__name__} failed: {error}") from error

    mixin = MIXINS[site]
    first, before = kind.plain if issubclass(kind, Lending) else (kind, ())
    return type(
        first.__name__ if first.__name__.startswith("Quant") else f"Quant{first.__name__}",
        (kind,) if issubclass(kind, mixin) else (mixin, kind),
        {attribute: property(read), "plain": (first, (*before, lent)), "__module__": first.__module__},
    )


def _revive(kind: type, lent: tuple[tuple[str, str, str], ...]) -> nn.Module:
    for one in lent:
        kind = _lending(kind, one)
    return kind.__new__(kind)  # type: ignore[call-overload]
