"""A linear layer [out, in] in the layout that compressed-tensors calls pack-quantized.

    weight_packed   int32 [out, in * bits / 32]   codes + 2^(bits - 1), the first in the lowest bits
    weight_scale    [out, in / group], or [out, 1] for one scale a row
    weight_shape    int64 [2]

The format has zero points too, but Transformers does not load what compressed-tensors 0.20 writes of them; the
codes of asymmetric int4, less their zero point, lie within -15..15, and are stored in eight bits.

Nothing is packed by our own hands: the package's functions write and read.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from razor.export.hf_folder import Skeleton
from razor.export.integers import GROUPS, Integers, Span, check_spans, scales_as, shared_inputs
from razor.quant import Format, Plan, RowMix

NAME = "compressed_tensors"
Scheme = tuple[int, int]
"""Bits of a code, and inputs that share a scale (-1: a row)."""


def schemes(plan: Plan, skeleton: Skeleton) -> dict[str, Scheme]:
    """Bits and group of every decoder linear that is not left in 16 bits."""
    return {
        name: _scheme(found, plan.modules[name].weights, skeleton.linear[name].in_features)
        for name, found in check_spans(NAME, plan, skeleton, bare=True).items()
    }


def _scheme(found: Span, format: Format, columns: int) -> Scheme:
    """Groups are cut to one of GROUPS where that goes, for vLLM; a row keeps its one scale."""
    width = shared_inputs(format, columns)
    group = next((group for group in GROUPS if width % group == 0), width)
    return 8 if found.zeros else found.bits, -1 if width == columns else group


def folder_dtype(plan: Plan) -> torch.dtype:
    """bf16 if all scales are, else fp16."""
    kinds = set()
    for place in plan.modules.values():
        format = place.weights.high if isinstance(place.weights, RowMix) else place.weights
        kinds.add(getattr(format, "scale_dtype", None))
    return torch.bfloat16 if kinds - {None} == {"bfloat16"} else torch.float16


def packed(weight: Integers, bits: int, dtype: torch.dtype, name: str) -> dict[str, Tensor]:
    """The tensors of a layer [out, in], by the package's own packing.

    Raises:
        RazorError: scales that the dtype cannot hold.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {
        "weight_packed": pack_to_int32(weight.folded().values, bits),
        "weight_scale": scales_as(weight.scales, dtype, name).contiguous(),
        "weight_shape": torch.tensor(weight.values.shape),
    }


def unpacked(tensors: Mapping[str, Tensor], name: str, bits: int) -> Integers:
    """What the package reads for a layer."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
    values = unpack_from_int32(tensors[f"{name}.weight_packed"], bits, shape)
    return Integers(values, tensors[f"{name}.weight_scale"], None)
