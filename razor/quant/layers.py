"""Layers that quantize as they compute.

`QuantLinear` and `QuantEmbedding` subclass the torch layers and *share* their parameter: the fp32 latent
weight stays an ordinary `nn.Parameter` that any optimizer can train, and tied weights stay tied. In the
forward pass the layer multiplies with the quantized weight instead.

A weight is quantized anew only after it can have changed: once per optimizer step however many micro-batches
that has, once for a tied embedding and head, once for a whole evaluation. In-place changes are counted by
`Tensor._version`, except those of fused optimizers, which write past it; so every step of any torch
optimizer counts as a change too. (Writing through `weight.data` is seen by neither: don't.) The codes always
come from the latent weight; there is no "already quantized" flag to get wrong.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from razor.quant.format import Format, StraightThrough

_optimizer_steps = 0


def _count_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


register_optimizer_step_post_hook(_count_step)


class FakeQuantizer(nn.Module):
    """A weight format that remembers its last result. Modules with a tied weight share one."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format
        self._remembered: tuple[weakref.ref[Tensor], Any, Tensor] | None = None

    def forward(self, latent: Tensor, dtype: torch.dtype) -> Tensor:
        """The quantized weight in `dtype`; gradient straight through to `latent`."""
        key = (latent.data_ptr(), latent._version, _optimizer_steps, dtype)
        known = self._remembered
        # A reference and not the id: the address of a parameter that is gone may be given to a new one.
        if known is None or known[0]() is not latent or known[1] != key:
            # An inference tensor could not be used for training later: leave inference mode here.
            with torch.inference_mode(False), torch.no_grad():
                known = self._remembered = (weakref.ref(latent), key, self.format.quantize(latent, dtype))
        return StraightThrough.apply(latent, known[2])

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without a memory."""
        return super().__getstate__() | {"_remembered": None}


class QuantLinear(nn.Linear):
    """`nn.Linear` with a quantized weight and, optionally, quantized input activations."""

    weights: FakeQuantizer
    activations: Format | None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, weights: FakeQuantizer, activations: Format | None
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


class Rounded(nn.Module):
    """Parametrization of a parameter that is only rounded to its 16-bit storage type (norms, biases)."""

    def __init__(self, format: Format, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.format, self.compute_dtype = format, compute_dtype

    def forward(self, latent: Tensor) -> Tensor:
        """The rounded parameter in the compute dtype; gradient straight through."""
        return self.format(latent, self.compute_dtype)
