"""Rows by sensitivity: which, how they are stored, and what that costs."""

from __future__ import annotations

import math

import pytest
import torch

from razor.errors import RazorError
from razor.quant import Affine, Float16, Integer, LearnedScale, RowMix, StretchedElastic, Ternary
from razor.quant.rowmix import even_rows, map_of, rows_of


@pytest.mark.parametrize("fraction", [0.0, 0.1, 1 / 3, 0.37, 0.5, 0.6, 0.875, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_even_spreading_is_exact_at_any_fraction(fraction, rows):
    chosen = even_rows(rows, fraction)
    assert chosen.sum() == math.ceil(rows * fraction - 1e-9)
    many = int(chosen.sum())
    if many > 1:
        gaps = chosen.nonzero().flatten().diff()
        assert gaps.max() - gaps.min() <= 1  # as even as whole rows can be


def mix(fraction=0.25, rows="error"):
    return RowMix(Integer(4, 16), Ternary(16), fraction, rows)


def test_the_rows_that_gain_most_are_high():
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    x[[3, 8, 11, 14]] *= 5  # ten times the loss, ten times the gain
    assert mix().encode(x).high.nonzero().flatten().tolist() == [3, 8, 11, 14]
    best = (mix().quantize(x) - x).square().sum()
    assert best < 0.7 * (mix(rows="even").quantize(x) - x).square().sum()
    for _ in range(20):  # no other choice of as many rows is better
        other = mix().choose(x, torch.rand(16))
        assert (other.quantize(x) - x).square().sum() >= best - 1e-4


def test_bound_rows_stay_when_the_weight_moves():
    x = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    bound = mix().bind(x)
    assert torch.equal(bound.encode(x.flip(0)).high, bound.encode(x).high)
    assert not torch.equal(mix().encode(x.flip(0)).high, mix().encode(x).high)


def test_scores_from_elsewhere_choose():
    x, scores = torch.randn(8, 16), torch.tensor([0.0, 5.0, 1.0, 5.0, 0.0, 0.0, 9.0, 0.0])
    bound = mix(fraction=3 / 8).choose(x, scores)
    assert bound.encode(x).high.nonzero().flatten().tolist() == [1, 3, 6]
    with pytest.raises(RazorError, match="rows='error' and a score a row"):
        mix(rows="even").choose(x, scores)
    with pytest.raises(RazorError, match="8 scores for 6 rows"):
        mix().choose(x[:6], scores)


def test_the_map_is_stored_and_counted():
    x = torch.randn(20, 32)
    stored, spread = mix(), mix(rows="even")
    packed = stored.pack(stored.encode(x))
    assert packed["map"].dtype == torch.uint8 and packed["map"].numel() == 3  # 20 bits
    assert stored.bits(x.shape) - spread.bits(x.shape) == 20
    assert stored.packed_bytes(x.shape) - spread.packed_bytes(x.shape) == 3
    bits = [packed["map"][i // 8].item() >> (i % 8) & 1 for i in range(20)]
    assert bits == stored.encode(x).high.int().tolist()


def test_formats_of_unlike_kinds_share_a_matrix():
    """Levels without a zero beside levels with a zero point."""
    x = torch.randn(12, 32) + 0.4
    high, low = Affine(4, 16), StretchedElastic(4, 16)
    mixed = RowMix(high, low, 0.5).quantize(x)
    codes = RowMix(high, low, 0.5).encode(x)
    assert torch.equal(RowMix(high, low, 0.5).decode(codes), mixed)
    assert torch.equal(mixed[::2], high.quantize(x[::2])) and torch.equal(mixed[1::2], low.quantize(x[1::2]))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: RowMix(Integer(4, 8), Ternary(8), "half"), "fraction='half' must be a number"),
        (lambda: RowMix(Integer(4, 8), Ternary(8), True), "fraction=true must be a number"),
        (lambda: RowMix(Float16(), Ternary(8), 0.5), "high="),
        (lambda: LearnedScale(Float16()), "base="),
        (lambda: LearnedScale(Ternary(8), "10"), "lr_multiplier='10' must be a number"),
        (lambda: Ternary(8, factor="2"), "factor='2' must be a number"),
        (lambda: Ternary(8, anneal=None), "anneal=null must be a number"),
    ],
)
def test_arguments_of_another_type_are_said(make, problem):
    with pytest.raises(RazorError, match=f"^{problem}"):
        make()


def test_what_cannot_be_mixed_is_said():
    with pytest.raises(RazorError, match="'tensor'"):
        RowMix(Integer(4, "tensor"), Ternary("tensor"), 0.5)
    with pytest.raises(RazorError, match=r"one scale_dtype, not float16 .* bfloat16"):
        RowMix(Integer(4, 8), Ternary(8, scale_dtype="bfloat16"), 0.5)
    with pytest.raises(RazorError, match=r"rows='best'. Choices: even, error"):
        RowMix(Integer(4, 8), Ternary(8), 0.5, "best")


@pytest.mark.parametrize("rows", [1, 4, 7, 20, 64])
def test_a_map_says_which_rows(rows):
    """As a start or an allocation found them: it goes through a plan, a file and a packed matrix."""
    chosen = torch.rand(rows, generator=torch.Generator().manual_seed(rows)) < 0.4
    chosen[0] = True
    text, x = map_of(chosen), torch.randn(rows, 32)
    assert torch.equal(rows_of(text, rows), chosen)
    mapped = mix(int(chosen.sum()) / rows, text)
    mapped.check(x.shape, "here")
    again = RowMix.from_spec(mapped.spec())
    codes = again.encode(x)
    assert torch.equal(codes.high, chosen)
    expected = torch.where(chosen.unsqueeze(1), Integer(4, 16).quantize(x), Ternary(16).quantize(x))
    assert torch.equal(again.quantize(x), expected) and torch.equal(again.bind(x).quantize(x), expected)
    assert torch.equal(again.decode(again.unpack(again.pack(codes), x.shape)), expected)
    assert again.bits(x.shape) == mix(int(chosen.sum()) / rows, "error").bits(x.shape)
    assert sum(t.nbytes for t in again.pack(codes).values()) == again.packed_bytes(x.shape)


def test_a_map_of_another_matrix_is_an_error():
    mapped = mix(0.5, "map:3c")  # eight rows, the outer four high
    mapped.check((8, 32), "here")
    assert rows_of("map:3c", 8).tolist() == [True, True, False, False, False, False, True, True]
    with pytest.raises(
        RazorError, match=r"map of rows of 'here' has 2 digits and 4 high rows; 12 rows .* 3 digits"
    ):
        mapped.check((12, 32), "here")
    with pytest.raises(
        RazorError,
        match=r"2 high rows; 6 rows with fraction 0.5 high have 2 digits and 3 of them.*another model",
    ):
        mapped.check((6, 32), "here")
    with pytest.raises(RazorError, match=r"rows='map:xy'. Choices: even, error, map:"):
        mix(0.5, "map:xy")
