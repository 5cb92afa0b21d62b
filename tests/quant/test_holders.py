"""What stock types hold exactly, checked by writing blocks and letting the types' own reader decode them."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from razor.quant import Affine, Float16, Format, Integer, LearnedScale, RowMix, StretchedElastic, Ternary
from razor.quant.holders import GGUF, compressed_tensors_bits, gguf_types, gptq_bits


def nibbles(codes: np.ndarray) -> np.ndarray:
    """32 codes 0..15 -> 16 bytes: the first half of a block in the low nibbles, the second in the high."""
    return (codes[:, :16] | codes[:, 16:] << 4).astype(np.uint8)


def block_bytes(name: str, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Blocks [n, 32 or 256] of int8 codes with fp16 scales [n, 1] -> bytes of a GGUF type."""
    d = scale.astype(np.float16).view(np.uint8)
    if name == "Q8_0":
        return np.concatenate([d, codes.view(np.uint8)], axis=1)
    if name == "Q4_0":
        return np.concatenate([d, nibbles((codes + 8).astype(np.uint8))], axis=1)
    if name == "Q5_0":
        raised = (codes + 16).astype(np.uint8)
        high = np.packbits(raised >> 4, axis=1, bitorder="little")
        return np.concatenate([d, high, nibbles(raised & 15)], axis=1)
    assert name == "TQ2_0"
    quarters = (codes + 1).astype(np.uint8).reshape(len(codes), 2, 4, 32)
    packed = quarters[:, :, 0] | quarters[:, :, 1] << 2 | quarters[:, :, 2] << 4 | quarters[:, :, 3] << 6
    return np.concatenate([packed.reshape(len(codes), 64), d], axis=1)


def through(name: str, format: Format, x: torch.Tensor) -> torch.Tensor:
    """The numbers that gguf reads from the format's codes, written as a GGUF type."""
    codes, block = format.encode(x), GGUF[name][0]
    values, scales = codes.values.numpy(), codes.scales.float().numpy()
    if any(getattr(module, "shift", 0) for module in format.modules()):
        values, scales = 2 * values + 1, scales / 2
    repeated = np.repeat(scales, x.shape[1] // scales.shape[1], axis=1).reshape(-1, block)[:, :1]
    raw = block_bytes(name, values.reshape(-1, block), repeated).reshape(len(x), -1)
    return torch.from_numpy(gguf.dequantize(raw, gguf.GGMLQuantizationType[name])).reshape(x.shape)


@pytest.mark.parametrize(
    "format",
    [
        Ternary(256),
        Ternary(64, scale="mse"),
        Ternary("row"),
        Integer(4, 32),
        Integer(3, 64, "mse"),
        Integer(5, 128),
        Integer(8, 256),
        StretchedElastic(3, 256),
        StretchedElastic(4, 64),
        LearnedScale(Ternary(512)),
        RowMix(Integer(4, 64), Ternary(64), 0.5),
        RowMix(Integer(4, 64), StretchedElastic(3, 64), 0.25, "error"),
    ],
    ids=lambda f: f"{f.spec()['kind']}-{f.label}",
)
def test_what_is_said_to_hold_holds_exactly(format):
    x = torch.randn(8, 512, generator=torch.Generator().manual_seed(0))
    types = gguf_types(format, 512)
    assert types
    for name in types:
        if name != "TQ1_0":  # base-3 digits, the same codes as TQ2_0
            assert torch.equal(through(name, format, x), format.quantize(x)), name


@pytest.mark.parametrize(
    ("format", "types"),
    [
        (Ternary(256), ["TQ1_0", "TQ2_0", "Q4_0", "Q5_0", "Q8_0"]),
        (Ternary(64), ["Q4_0", "Q5_0", "Q8_0"]),
        (Ternary(48), []),  # a block of 32 would have two scales
        (Integer(4, 16), []),
        (Integer(5, 32), ["Q5_0", "Q8_0"]),
        (Integer(8, 32), ["Q8_0"]),
        (Affine(4, 32), []),  # Q4_1 keeps minus the zero point times the scale, rounded
        (Ternary(256, scale_dtype="bfloat16"), []),  # bf16 scales reach beyond fp16
        (Float16("bfloat16"), ["BF16"]),
        (RowMix(Integer(4, 256), Ternary(256), 0.5), ["Q4_0", "Q5_0", "Q8_0"]),
        (RowMix(Integer(4, 256), Ternary(256), 0.0), ["TQ1_0", "TQ2_0", "Q4_0", "Q5_0", "Q8_0"]),
    ],
)
def test_types_by_format(format, types):
    assert list(gguf_types(format, 768)) == types


def test_rows_that_blocks_do_not_fill_have_no_type():
    assert gguf_types(Ternary("row"), 576) == {"Q4_0": 4.5, "Q5_0": 5.5, "Q8_0": 8.5}  # 576 = 18 * 32
    assert gguf_types(Integer(4, "row"), 100) == {}


def test_the_bits_are_those_of_the_reader():
    for name, (block, _, _, bits) in GGUF.items():
        size, type_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
        assert size == block and 8 * type_bytes / size == bits


@pytest.mark.parametrize(
    ("format", "gptq", "compressed"),
    [
        (Integer(4, 64), 4, 4),
        (Integer(4, 256), 4, 4),  # its scale repeats at 128
        (Integer(4, 48), None, None),
        (Integer(4, "row"), 4, 4),
        (Integer(3, 128), 3, 4),
        (Ternary(64), 2, 4),
        (Affine(2, 64), 2, 4),
        (Integer(8, 128), 8, 8),
        (StretchedElastic(4, 64), None, None),
        (RowMix(Integer(4, 64), Ternary(64), 0.5), None, None),
    ],
)
def test_integer_files(format, gptq, compressed):
    assert gptq_bits(format, 768) == gptq and compressed_tensors_bits(format, 768) == compressed


def test_one_format_as_both_parts_of_a_mix():
    whole = Integer(8, 32)
    assert gguf_types(RowMix(whole, whole, 1.0), 256) == gguf_types(whole, 256)
