"""Layers that quantize as they compute.

`QuantLinear` and `QuantEmbedding` subclass the torch layers and *share* their parameter: the fp32 latent
weight stays an ordinary `nn.Parameter` that any optimizer can train, and tied weights stay tied. In the
forward pass the layer multiplies with the quantized weight instead.

A weight is quantized anew only after it can have changed: once per optimizer step however many micro-batches
that has, once for a tied embedding and head, once for a whole evaluation. In-place changes are counted by
`Tensor._version`, except those of fused optimizers, which write past it; so every step of any torch
optimizer counts as a change too. (Writing through `weight.data` is seen by neither: don't.) The codes always
come from the latent weight; there is no "already quantized" flag to get wrong.

Inputs are quantized at every pass, but layers that read the same tensor (q, k and v; gate and up) share the
result, which saves the work and, in training, a copy of the activation each.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from razor.quant.format import FakeQuantize, Format
from razor.quant.view import MatrixView

_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class FakeQuantizer(nn.Module):
    """A weight's format with a memory. Modules with a tied weight share one.

    Args:
        format: bound to the weight (see `for_weight`).
        view: how the format sees the weight.
    """

    def __init__(self, format: Format, view: MatrixView | None = None) -> None:
        super().__init__()
        self.format, self.view = format, view or MatrixView()
        self.remembers = True  # off where weights are sharded, and whole only for as long as they are used
        self._remembered: tuple[weakref.ref[Tensor], Any, Tensor] | None = None

    @classmethod
    def for_weight(cls, weight: Tensor, format: Format, view: MatrixView | None = None) -> FakeQuantizer:
        """Bind a plan's format to a weight: scales to be learned and maps of rows are made from it now."""
        view = view or MatrixView()
        with torch.no_grad():
            return cls(format.bind(view.matrix(weight.detach())), view)

    @torch.compiler.disable  # a memory is not for compilers, nor is rounding (see Format.forward)
    def forward(self, latent: Tensor, dtype: torch.dtype) -> Tensor:
        """The quantized weight, shaped like `latent`, in `dtype`; gradient as the format says."""
        key = (latent.data_ptr(), latent._version, _optimizer_steps, dtype, self.format.moment())
        known = self._remembered
        # A reference and not the id: the address of a parameter that is gone may be given to a new one.
        if not self.remembers or known is None or known[0]() is not latent or known[1] != key:
            # An inference tensor could not be used for training later: leave inference mode here.
            with torch.inference_mode(False), torch.no_grad():
                quantized = self.format.fake(self.view.matrix(latent), dtype)
                known = (weakref.ref(latent), key, self.view.back(quantized, latent.shape))
            self._remembered = known if self.remembers else None
        return FakeQuantize.apply(latent, known[2], self, *self.format.learned())

    @property
    def straight_through(self) -> bool:
        """See `Format`."""
        return self.format.straight_through

    def gradients(self, latent: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
        """See `Format`; `latent` in its own shape."""
        own, *learned = self.format.gradients(self.view.matrix(latent), self.view.matrix(gradient))
        return self.view.back(own, latent.shape), *learned

    def _apply(self, *args: Any, **kwargs: Any) -> FakeQuantizer:
        # `.half().float()` rounds a weight through its `data`, and may leave address and version as they were
        self._remembered = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without a memory."""
        return super().__getstate__() | {"_remembered": None}


class InputQuantizer(nn.Module):
    """An activation format that remembers its last result, for layers that read the same input."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format
        self._remembered: tuple[weakref.ref[Tensor], Any, Tensor] | None = None

    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        """[..., columns] -> the same, quantized; gradient straight through."""
        if not torch.is_grad_enabled():  # nothing is kept for a backward pass: keep nothing here either
            return self.format(x)
        key, known = (x.data_ptr(), x._version, x.requires_grad, self.format.moment()), self._remembered
        if known is None or known[0]() is not x or known[1] != key:
            known = self._remembered = (weakref.ref(x), key, self.format(x))
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without a memory."""
        return super().__getstate__() | {"_remembered": None}


class QuantLinear(nn.Linear):
    """`nn.Linear` with a quantized weight and, optionally, quantized input activations."""

    weights: FakeQuantizer
    activations: InputQuantizer | Format | None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, weights: FakeQuantizer, activations: InputQuantizer | Format | None
    ) -> QuantLinear:
        """Share the parameters of `linear`; nothing is copied (works on the meta device)."""
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.weights, layer.activations = weights, activations
        return layer

    def quantized_weight(self, dtype: torch.dtype) -> Tensor:
        """[out, in] the weight this layer computes with."""
        return self.weights(self.weight, dtype)

    def quantized_input(self, x: Tensor) -> Tensor:
        """[..., in] the input this layer computes with."""
        return x if self.activations is None else self.activations(x)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], computed in the dtype of `x`."""
        return F.linear(self.quantized_input(x), self.quantized_weight(x.dtype), self.bias)


class QuantEmbedding(nn.Embedding):
    """`nn.Embedding` with a quantized table; its output has the model's compute dtype."""

    weights: FakeQuantizer
    compute_dtype: torch.dtype

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, weights: FakeQuantizer, compute_dtype: torch.dtype
    ) -> QuantEmbedding:
        """Share the parameter of `embedding`; nothing is copied (works on the meta device)."""
        layer = cls(embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, device="meta")
        layer.weight = embedding.weight
        layer.weights, layer.compute_dtype = weights, compute_dtype
        return layer

    def quantized_weight(self, dtype: torch.dtype) -> Tensor:
        """[vocabulary, width] the table this layer looks up in."""
        return self.weights(self.weight, dtype)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] -> [..., width] in the compute dtype."""
        return F.embedding(tokens, self.quantized_weight(self.compute_dtype), self.padding_idx)
