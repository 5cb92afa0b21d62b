"""One packed weight: its stored tensors, its format, and the ways to hold it in memory.

A `CodedWeight` is where a parameter was. It decodes itself for whoever asks, multiplies in a 4-bit kernel if it is
held in that kernel's layout, and is saved as the packed tensors whatever the layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.quant.codes import Codes
from razor.quant.format import Format
from razor.quant.grouped import Grouped
from razor.quant.int4_kernel import FEW, Int4Weight
from razor.quant.view import MatrixView

IN_KERNEL = ("int4_codes", "int4_scales", "kept_scales")
"""Buffers of a weight that is held in the kernel's layout."""

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
