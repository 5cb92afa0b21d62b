"""Layers without latent weights: the model as it is stored.

`CodedWeight` holds the packed tensors of one weight and its format; `CodedLinear` and `CodedEmbedding`
compute with it, and layers with a forward pass of their own read it in the parameter's place (see
`razor.quant.lending`). The `state_dict` of it all *is* the content of the packed file, so saving and loading
need no translation, and a coded model can be saved again. A tied head and embedding share one `CodedWeight`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.quant.apply import planned, swap
from razor.quant.codes import Codes
from razor.quant.format import Format
from razor.quant.grouped import Grouped
from razor.quant.int4_kernel import FEW, Int4Weight
from razor.quant.layers import FakeQuantizer
from razor.quant.lending import CODED, WEIGHTS, lend, slot
from razor.quant.plan import Plan
from razor.quant.sites import Site
from razor.quant.view import MatrixView

IN_KERNEL = ("int4_codes", "int4_scales", "kept_scales")
"""Buffers of a weight that is held in the kernel's layout."""

SMALL = 1 << 16
"""Numbers of an input that is remembered, at most."""

Hold = Literal["decoded", "packed", "int4"]
"""What of a weight is kept in memory: decoded 16-bit numbers (bit for bit the student, fast); the packed codes,
decoded at each use (bit for bit, small, slow); or 4-bit codes in a kernel's layout (small and fast, equal up to
rounding; weights that do not fit it stay packed)."""


class CodedWeight(nn.Module):
    """A packed weight.

    Args:
        format: how to read it.
        shape: shape of the weight.
        packed: its tensors by name; None makes empty ones, to be loaded into.
        hold: what is kept in memory, see `Hold`.
        view: how the format sees the weight.
    """

    def __init__(
        self,
        format: Format,
        shape: tuple[int, ...],
        packed: dict[str, Tensor] | None = None,
        hold: Hold = "decoded",
        view: MatrixView | None = None,
    ) -> None:
        super().__init__()
        self.format, self.shape, self.hold = format, tuple(shape), hold
        self.view = view or MatrixView()
        self._decoded: Tensor | None = None
        self._int4: Int4Weight | None = None
        layout = format.packed_layout(self.view.shape(self.shape))
        for name, (size, dtype) in layout.items():
            tensor = packed[name] if packed else torch.empty(size, dtype=dtype)
            self.register_buffer(name.replace(".", "_"), tensor)
        self._names = list(layout)

    def forget(self) -> None:
        """Let go of what was made from the codes: they have changed."""
        self._decoded = None

    def arrange(self) -> None:
        """Put the codes into the layout of the 4-bit kernel, if that is how they are to be held and they fit."""
        plain = len(self.shape) == 2 and self.view == MatrixView()
        here = getattr(self, self._names[0].replace(".", "_"), None)
        if self.hold != "int4" or not plain or here is None or here.device.type != "cpu":
            return
        if (made := Int4Weight.of(self.format, self.unpacked())) is not None:
            self._int4 = made
            for name in self._names:
                setattr(self, name.replace(".", "_"), None)
            kept = (made.codes, made.scales, made.kept.scales)
            for name, tensor in zip(IN_KERNEL, kept, strict=True):  # so that who counts buffers counts them
                self.register_buffer(name, tensor, persistent=False)

    def _pack_again(self) -> None:
        """Take the codes out of the kernel's layout."""
        if self._int4 is None:
            return
        packed = self.format.pack(self.unpacked())
        self._int4 = None
        for name in IN_KERNEL:
            del self._buffers[name]
        for name, tensor in packed.items():
            setattr(self, name.replace(".", "_"), tensor)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.forget()
        self._pack_again()
        super()._load_from_state_dict(*arguments, **options)
        self.arrange()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if self._int4 is None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        for name, tensor in self.format.pack(self.unpacked()).items():
            destination[prefix + name.replace(".", "_")] = tensor

    def _apply(self, *arguments: Any, **options: Any) -> CodedWeight:
        self._decoded = None
        self._pack_again()
        before = dict(self.named_buffers())
        super()._apply(*arguments, **options)
        for name, tensor in before.items():
            now = getattr(self, name)
            if now.dtype != tensor.dtype:  # .to(dtype) is not meant for what is stored
                setattr(self, name, tensor.to(now.device))
        self.arrange()
        return self

    def unpacked(self) -> Codes:
        """The codes [rows, columns]."""
        if self._int4 is not None:
            return replace(self._int4.kept, values=self._int4.values())
        packed = {name: getattr(self, name.replace(".", "_")) for name in self._names}
        return self.format.unpack(packed, self.view.shape(self.shape))

    def forward(self, dtype: torch.dtype) -> Tensor:
        """The weight: decoded in fp32, rounded once to `dtype`."""
        if self._decoded is not None and self._decoded.dtype == dtype:
            return self._decoded
        # an inference tensor, kept, would be of no use to whoever differentiates later
        with torch.inference_mode(False), torch.no_grad():
            decoded = self.view.back(self.format.decode(self.unpacked()).to(dtype), self.shape)
        self._decoded = decoded if self.hold == "decoded" else None
        return decoded

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """[..., in] times the weight [out, in], and a bias [out]: [..., out]."""
        few = x.numel() <= FEW * x.shape[-1] and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        if self._int4 is not None and few:
            product = self._int4.multiply(x.reshape(-1, x.shape[-1]).contiguous()).view(*x.shape[:-1], -1)
            return product if bias is None else product + bias
        return F.linear(x, self(x.dtype), bias)

    def look_up(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the weight by their numbers, [...] -> [..., columns]; no more is decoded than these."""
        if self.hold == "decoded" or not isinstance(self.format, Grouped) or self.format.group == "tensor":
            return F.embedding(tokens, self(dtype))
        index, columns = tokens.reshape(-1), self.shape[1]
        if self._int4 is not None:
            codes = self._int4.rows(index)
        else:
            part = {name: getattr(self, name).index_select(0, index) for name in self._names}
            codes = self.format.unpack(part, (len(index), columns))
        return self.format.decode(codes).to(dtype).view(*tokens.shape, columns)


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
