"""A matrix in the layout of GPTQ checkpoints, version 1.

For `in` inputs and `out` outputs, in groups of g inputs:

    qweight   int32 [in / 8, out]        eight unsigned codes of one column in a word, the first in the lowest bits
    qzeros    int32 [in / g, out / 8]    zero points, packed along the outputs
    scales    fp16  [in / g, out]
    g_idx     int32 [in]                 group of each input

    w[i, o] = (q[i, o] - z[g_idx[i], o]) * scales[g_idx[i], o]

Version 1, which everybody reads, stores z - 1 (AutoGPTQ began so): symmetric codes become q = code + 8 with z = 8,
stored as 7.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.integers import Integers, scales_as

SCALES = torch.float16


def packed(weight: Integers, group: int, name: str) -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx of a matrix.

    Args:
        weight: [out, in], in groups of `group` inputs.
        group: inputs that share a scale.
        name: of the matrix, for errors.

    Raises:
        RazorError: a zero point that version 1 cannot say, or scales that fp16 cannot.
    """
    inputs = weight.values.shape[1]
    zeros = torch.zeros_like(weight.scales, dtype=torch.int8) if weight.zeros is None else weight.zeros
    if bool((zeros == -8).any()):
        raise RazorError(
            f"'{name}' has zero points of 0, which GPTQ's version 1 cannot say (it stores them less one). "
            "export=[packed,compressed_tensors,dense] hold them."
        )
    scales = scales_as(weight.scales, SCALES, name)
    return {
        "qweight": words(weight.values.T + 8, 0),
        "qzeros": words(zeros.T + 7, 1),
        "scales": scales.T.contiguous(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // group,
    }


def words(nibbles: Tensor, along: int) -> Tensor:
    """Unsigned 4-bit numbers [a, b], eight neighbours along one dimension in an int32 word, the first lowest."""
    cut = nibbles.to(torch.int32).unflatten(along, (-1, 8))
    shape = [1, 1, 1]
    shape[along + 1] = 8
    return (cut << (4 * torch.arange(8, dtype=torch.int32)).reshape(shape)).sum(along + 1, dtype=torch.int32)


def unpacked(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The matrix [out, in] in fp32, by the formula above: read from the stored tensors and nothing else."""
    qweight, qzeros = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
    scales, groups = tensors[f"{name}.scales"], tensors[f"{name}.g_idx"].long()
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = ((qweight[:, None, :] >> shifts[None, :, None]) & 15).flatten(0, 1)
    zeros = (((qzeros[:, :, None] >> shifts) & 15) + 1).flatten(1)
    return ((codes - zeros[groups]).float() * scales.float()[groups]).T
