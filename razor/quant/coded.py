"""Layers without latent weights: the model as it is stored.

`CodedWeight` holds the packed tensors of one weight and its format; `CodedLinear` and `CodedEmbedding`
compute with it. Their `state_dict` *is* the content of the packed file, so saving and loading need no
translation, and a coded model can be saved again. A tied head and embedding share one `CodedWeight`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.quant.codes import Codes
from razor.quant.format import Format
from razor.quant.layers import QuantEmbedding, QuantLinear
from razor.quant.plan import Plan


class CodedWeight(nn.Module):
    """A packed weight.

    Args:
        format: how to read it.
        shape: shape of the weight.
        packed: its tensors by name; None makes empty ones, to be loaded into.
        keep: keep the decoded weight in memory (fast) instead of decoding at each use (small).
    """

    def __init__(
        self,
        format: Format,
        shape: tuple[int, ...],
        packed: dict[str, Tensor] | None = None,
        keep: bool = True,
    ) -> None:
        super().__init__()
        self.format, self.shape, self.keep = format, tuple(shape), keep
        self._decoded: Tensor | None = None
        layout = format.packed_layout(self.shape)
        for name, (size, dtype) in layout.items():
            tensor = packed[name] if packed else torch.empty(size, dtype=dtype)
            self.register_buffer(name.replace(".", "_"), tensor)
        self._names = list(layout)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self._decoded = None  # of the codes before
        super()._load_from_state_dict(*arguments, **options)

    def _apply(self, *arguments: Any, **options: Any) -> CodedWeight:
        self._decoded, before = None, dict(self.named_buffers())
        super()._apply(*arguments, **options)
        for name, tensor in before.items():
            now = getattr(self, name)
            if now.dtype != tensor.dtype:  # .to(dtype) is not meant for what is stored
                setattr(self, name, tensor.to(now.device))
        return self

    def unpacked(self) -> Codes:
        """The codes."""
        packed = {name: getattr(self, name.replace(".", "_")) for name in self._names}
        return self.format.unpack(packed, self.shape)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weight: decoded in fp32, rounded once to `dtype`."""
        if self._decoded is not None and self._decoded.dtype == dtype:
            return self._decoded
        decoded = self.format.decode(self.unpacked()).to(dtype)
        self._decoded = decoded if self.keep else None
        return decoded


class CodedLinear(nn.Module):
    """A linear layer on a packed weight; inference only."""

    def __init__(self, coded: CodedWeight, bias: nn.Parameter | None, activations: Format | None) -> None:
        super().__init__()
        self.coded, self.activations, self.bias = coded, activations, bias
        self.out_features, self.in_features = coded.shape

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        x = x if self.activations is None else self.activations(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.coded(x.dtype), bias)


class CodedEmbedding(nn.Module):
    """An embedding on a packed weight; inference only."""

    def __init__(
        self, coded: CodedWeight, compute_dtype: torch.dtype, padding_idx: int | None = None
    ) -> None:
        super().__init__()
        self.coded, self.compute_dtype, self.padding_idx = coded, compute_dtype, padding_idx
        self.num_embeddings, self.embedding_dim = coded.shape

    def forward(self, tokens: Tensor) -> Tensor:
        """[...] -> [..., width]."""
        return F.embedding(tokens, self.coded(self.compute_dtype), self.padding_idx)


def swap_in_coded(model: nn.Module, plan: Plan, compute_dtype: torch.dtype, keep: bool = True) -> None:
    """Replace the planned layers of `model` (meta device is enough) by empty coded ones, in place.

    Afterwards `load_state_dict(packed_state(student), assign=True)` fills it. Tied layers share one
    `CodedWeight`; the state then holds it under the name of the first.
    """
    coded: dict[int, CodedWeight] = {}
    for name, place in plan.modules.items():
        module = model.get_submodule(name)
        assert isinstance(module, (nn.Linear, nn.Embedding))
        shape = tuple(module.weight.shape)
        weight = coded.setdefault(id(module.weight), CodedWeight(place.weights, shape, keep=keep))
        layer = (
            CodedLinear(weight, module.bias, place.activations)
            if isinstance(module, nn.Linear)
            else CodedEmbedding(weight, compute_dtype, module.padding_idx)
        )
        model.set_submodule(name, layer)


def packed_state(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Every stored tensor of a quantized model: `<module>.coded.<part>`, and 16-bit parameters by their name."""
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)) and id(module.weight) not in seen:
            seen.add(id(module.weight))
            format = module.weights.format
            packed = format.pack(format.encode(module.weight.detach().cpu()))
            state |= {f"{name}.coded.{part.replace('.', '_')}": t for part, t in packed.items()}
        for own in getattr(module, "parametrizations", {}):
            latent = module.parametrizations[own].original
            state[f"{name}.{own}"] = plan.rest.encode(latent.cpu()).values
    return state
