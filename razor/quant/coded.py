"""Layers without latent weights: the model as it is stored.

A `CodedWeight` (`razor.quant.coded_weight`) holds the packed tensors of one weight; `CodedLinear` and
`CodedEmbedding` compute with it, and layers with a forward pass of their own read it in the parameter's place (see
`razor.quant.lending`). The `state_dict` of it all *is* the content of the packed file, so saving and loading need
no translation, and a coded model can be saved again. A tied head and embedding share one `CodedWeight`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from razor.quant.apply import planned, swap
from razor.quant.coded_weight import CodedWeight, Hold
from razor.quant.codes import Codes
from razor.quant.format import Format
from razor.quant.layers import FakeQuantizer
from razor.quant.lending import CODED, WEIGHTS, lend, slot
from razor.quant.plan import Plan
from razor.quant.sites import Site

SMALL = 1 << 16
"""Numbers of an input that is remembered, at most."""


class SharedInput(nn.Module):
    """An activation format for layers that read the same input: that of a single token is quantized once.

    Where answers are written token by token, many small operations are what takes the time. Only for models
    without latents: a result made without a gradient must not be handed to one who wants it.
    """

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format
        self._remembered: tuple[weakref.ref[Tensor], tuple[int, int], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., columns] -> the same, quantized."""
        if torch.is_grad_enabled() or x.is_inference() or x.numel() > SMALL:
            return self.format(x)
        key, known = (x.data_ptr(), x._version), self._remembered
        if known is None or known[0]() is not x or known[1] != key:
            known = self._remembered = (weakref.ref(x), key, self.format(x))
        return known[2]

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without a memory."""
        return super().__getstate__() | {"_remembered": None}


class CodedLinear(nn.Module):
    """A linear layer on a packed weight; inference only."""

    def __init__(
        self, coded: CodedWeight, bias: nn.Parameter | None, activations: SharedInput | None
    ) -> None:
        super().__init__()
        self.coded, self.activations, self.bias = coded, activations, bias
        self.out_features, self.in_features = coded.shape

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        x = x if self.activations is None else self.activations(x)
        return self.coded.multiply(x, None if self.bias is None else self.bias.to(x.dtype))


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
        return self.coded.look_up(tokens, self.compute_dtype)


def swap_in_coded(model: nn.Module, plan: Plan, compute_dtype: torch.dtype, hold: Hold = "decoded") -> None:
    """Replace the planned weights of `model` (meta device is enough) by empty coded ones, in place.

    Afterwards `load_state_dict(packed_state(student, plan), assign=True)` fills it. Tied layers share one
    `CodedWeight`; the state then holds it once, under the name of the first.
    """
    coded: dict[int, CodedWeight] = {}
    inputs: dict[str, SharedInput] = {}
    swapped: dict[nn.Module, nn.Module] = {}
    for site, weights, activations in planned(model, plan):
        module, weight = site.module, site.weight
        rounding = None
        if activations is not None:
            rounding = inputs.setdefault(str(activations.spec()), SharedInput(activations))
        if id(weight) not in coded:
            coded[id(weight)] = CodedWeight(weights, tuple(weight.shape), hold=hold, view=site.view)
        if type(module) is nn.Linear:
            swapped[module] = CodedLinear(coded[id(weight)], module.bias, rounding)
        elif type(module) is nn.Embedding:
            swapped[module] = CodedEmbedding(coded[id(weight)], compute_dtype, module.padding_idx)
        else:
            lend(module, site.attribute, CODED, coded[id(weight)], compute_dtype, site.kind, rounding)
            module._parameters[site.attribute] = None
    swap(model, swapped)
    for module in model.modules():
        if isinstance(module, _BatchNorm):  # its statistics are stored in fp32, as they were in training
            module.float()
    model.register_state_dict_post_hook(_once)
    model.register_load_state_dict_pre_hook(_everywhere)


def _once(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave out the second name of a tied weight."""
    for other in _aliases(model):
        state.pop(prefix + other, None)


def _everywhere(model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Put it in again, where a state is loaded that was saved without."""
    for other, first in _aliases(model).items():
        if prefix + first in state:
            state.setdefault(prefix + other, state[prefix + first])


def _aliases(model: nn.Module) -> dict[str, str]:
    """Second and further names of the tensors of tied weights, with their first."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CodedWeight):
            earlier = first.setdefault(id(module), path)
            if earlier != path:
                found |= {f"{path}.{name}": f"{earlier}.{name}" for name in module._buffers}
    return found


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
