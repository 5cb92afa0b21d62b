"""Layers without latent weights: the model as it is stored.

`CodedWeight` holds the packed tensors of one weight and its format; `CodedLinear` and `CodedEmbedding`
compute with it, and layers with a forward pass of their own read it in the parameter's place (see
`razor.quant.lending`). The `state_dict` of it all *is* the content of the packed file, so saving and loading
need no translation, and a coded model can be saved again. A tied head and embedding share one `CodedWeight`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.quant.apply import planned, swap
from razor.quant.codes import Codes
from razor.quant.format import Format
from razor.quant.layers import FakeQuantizer
from razor.quant.lending import CODED, WEIGHTS, lend, slot
from razor.quant.plan import Plan
from razor.quant.sites import Site
from razor.quant.view import MatrixView


class CodedWeight(nn.Module):
    """A packed weight.

    Args:
        format: how to read it.
        shape: shape of the weight.
        packed: its tensors by name; None makes empty ones, to be loaded into.
        keep: keep the decoded weight in memory (fast) instead of decoding at each use (small).
        view: how the format sees the weight.
    """

    def __init__(
        self,
        format: Format,
        shape: tuple[int, ...],
        packed: dict[str, Tensor] | None = None,
        keep: bool = True,
        view: MatrixView | None = None,
    ) -> None:
        super().__init__()
        self.format, self.shape, self.keep = format, tuple(shape), keep
        self.view = view or MatrixView()
        self._decoded: Tensor | None = None
        layout = format.packed_layout(self.view.shape(self.shape))
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
        """The codes [rows, columns]."""
        packed = {name: getattr(self, name.replace(".", "_")) for name in self._names}
        return self.format.unpack(packed, self.view.shape(self.shape))

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weight: decoded in fp32, rounded once to `dtype`."""
        if self._decoded is not None and self._decoded.dtype == dtype:
            return self._decoded
        # an inference tensor, kept, would be of no use to whoever differentiates later
        with torch.inference_mode(False), torch.no_grad():
            decoded = self.view.back(self.format.decode(self.unpacked()).to(dtype), self.shape)
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
    """Replace the planned weights of `model` (meta device is enough) by empty coded ones, in place.

    Afterwards `load_state_dict(packed_state(student, plan), assign=True)` fills it. Tied layers share one
    `CodedWeight`; the state then holds it under the name of the first.
    """
    coded: dict[int, CodedWeight] = {}
    swapped: dict[nn.Module, nn.Module] = {}
    for site, weights, activations in planned(model, plan):
        module, weight = site.module, site.weight
        if id(weight) not in coded:
            coded[id(weight)] = CodedWeight(weights, tuple(weight.shape), keep=keep, view=site.view)
        if type(module) is nn.Linear:
            swapped[module] = CodedLinear(coded[id(weight)], module.bias, activations)
        elif type(module) is nn.Embedding:
            swapped[module] = CodedEmbedding(coded[id(weight)], compute_dtype, module.padding_idx)
        else:
            lend(module, site.attribute, CODED, coded[id(weight)], compute_dtype, site.kind, activations)
            module._parameters[site.attribute] = None
    swap(model, swapped)


def encoded(model: nn.Module, plan: Plan) -> Iterator[tuple[Site, Format, Codes]]:
    """Every planned weight of a quantized model, the format bound to it and its codes on the CPU; a tied one once.

    Codes are made where the weight lies: another device may sum in another order and round a scale the other way.
    """
    seen: set[int] = set()
    for site, *_ in planned(model, plan):
        if id(site.weight) not in seen:
            seen.add(id(site.weight))
            quantizer = _quantizer(site.module, site.attribute)
            yield (
                site,
                quantizer.format,
                quantizer.format.encode(site.view.matrix(site.weight.detach())).cpu(),
            )


def packed_state(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Every stored tensor of a quantized model, on the CPU.

    `<module>.coded.<part>` of a weight that is called `weight`, `<module>.coded_<name>.<part>` of another one;
    16-bit parameters and persistent buffers by their name.
    """
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for site, format, codes in encoded(model, plan):
        seen.add(id(site.weight))
        owner = f"{site.path}.{slot(CODED, site.attribute)}".lstrip(".")
        state |= {f"{owner}.{part.replace('.', '_')}": tensor for part, tensor in format.pack(codes).items()}
    for path, module in model.named_modules():
        if isinstance(module, Format):  # its state is packed with the weight's codes
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and id(parameter) not in seen:
                seen.add(id(parameter))
                rounded = _quantizer(module, name).format.encode(parameter.detach())
                state[f"{path}.{name}".lstrip(".")] = rounded.values.cpu()
        for name, buffer in module.named_buffers(recurse=False):  # running means of a normalisation
            if name not in module._non_persistent_buffers_set:
                state[f"{path}.{name}".lstrip(".")] = buffer.detach().cpu()
    return state


def _quantizer(module: nn.Module, attribute: str) -> FakeQuantizer:
    quantizer = module._modules[slot(WEIGHTS, attribute)]
    assert isinstance(quantizer, FakeQuantizer)
    return quantizer
