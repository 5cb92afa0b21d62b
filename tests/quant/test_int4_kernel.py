"""Codes in the layout of PyTorch's 4-bit kernel: the same codes, the same product up to rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.quant import Affine, CodedWeight, Format, Integer, RowMix, StretchedElastic, Ternary
from razor.quant.int4_kernel import Int4Weight

FORMATS: dict[str, Format] = {
    "int4": Integer(4, 64),
    "int3 row": Integer(3, "row"),
    "int2 tensor": Integer(2, "tensor"),
    "ternary": Ternary(32),
    "elastic": StretchedElastic(4, 64),
    "mixed": RowMix(Integer(4, 64), Ternary(64), 0.5),
    "mixed by error": RowMix(Integer(4, 64), Ternary(64), 0.25, "error"),
}
MISFITS: dict[str, tuple[Format, tuple[int, int]]] = {
    "eight bits": (Integer(8, 64), (64, 128)),
    "zero points": (Affine(4, 64), (64, 128)),
    "group of 24": (Integer(4, 24), (64, 48)),
    "40 rows": (Integer(4, 32), (40, 64)),
}


def weight(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=8, deadline=None)
@given(blocks=st.integers(1, 3), groups=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_same_codes_come_out(name: str, blocks: int, groups: int, seed: int) -> None:
    x = weight((64 * blocks, 64 * groups), seed)
    format = FORMATS[name].bind(x)
    codes = format.encode(x)
    made = Int4Weight.of(format, codes)
    assert made is not None
    assert torch.equal(made.values(), codes.values)
    index = torch.tensor([0, 63, 5, 64 * blocks - 1, 5])
    if codes.scales is not None and len(codes.scales) > 1:
        assert torch.equal(made.rows(index).values, codes.values[index])


@pytest.mark.parametrize("name", FORMATS)
def test_the_product_is_right_to_bf16_rounding(name: str) -> None:
    x, y = weight((128, 192)), weight((2, 192), 1).bfloat16()
    format = FORMATS[name].bind(x)
    codes = format.encode(x)
    made = Int4Weight.of(format, codes)
    assert made is not None
    exact = y.double() @ format.decode(codes).double().T
    assert (made.multiply(y).double() - exact).abs().max() <= 2**-7 * exact.abs().max()


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_stays_packed(name: str) -> None:
    format, shape = MISFITS[name]
    x = weight(shape)
    codes = format.encode(x)
    assert Int4Weight.of(format, codes) is None
    held = CodedWeight(format, shape, format.pack(codes), hold="int4")
    held.arrange()
    assert torch.equal(held(torch.float32), format.decode(codes))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("hold", ["packed", "int4"])
def test_a_held_weight_decodes_looks_up_and_saves_the_same(name: str, hold: str) -> None:
    x = weight((128, 192))
    format = FORMATS[name].bind(x)
    packed = format.pack(format.encode(x))
    held = CodedWeight(format, (128, 192), dict(packed), hold=hold)  # type: ignore[arg-type]
    plain = CodedWeight(format, (128, 192), dict(packed))
    held.arrange()
    tokens = torch.tensor([[3, 127, 3], [0, 64, 31]])
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(held(dtype), plain(dtype))
        assert torch.equal(held.look_up(tokens, dtype), plain(dtype)[tokens])
    state = held.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[key], tensor) for key, tensor in plain.state_dict().items())
    many = weight((5, 192), 2).bfloat16()
    assert torch.equal(held.multiply(many), plain.multiply(many))
    one = many[:1]
    gap = (held.multiply(one) - plain.multiply(one)).float().abs().max()
    assert gap <= 2**-6 * plain.multiply(one).float().abs().max()
    assert hold == "int4" or gap == 0


def test_it_takes_a_quarter_of_sixteen_bits() -> None:
    x = weight((512, 512))
    format = Integer(4, 256)
    held = CodedWeight(format, (512, 512), format.pack(format.encode(x)), hold="int4")
    held.arrange()
    assert sum(b.nbytes for b in held.buffers()) < 0.27 * 2 * x.numel()
