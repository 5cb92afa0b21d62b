"""GPTQ of one matrix: the formula, every shipped format, and that a latent weight holds what was found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant import Affine, Grouped, Integer, LearnedScale, RowMix, StretchedElastic, Ternary
from razor.start.holding import check_keeps, held, hold, parts_of
from razor.start.solve import Solved, inverse_factor, refitted, solve
from tests.quant.conftest import OPTIONS, formats_of

ROWS, COLUMNS = 24, 64


def inputs(samples: int = 300, columns: int = COLUMNS) -> Tensor:
    """[samples, columns] whose columns go together, as those of a model do."""
    torch.manual_seed(0)
    mixing = torch.randn(columns // 4, columns)
    return torch.randn(samples, columns // 4) @ mixing + 0.3 * torch.randn(samples, columns)


def found_for(format: Any, weight: Tensor, gram: Tensor, block: int = 128) -> tuple[Any, Tensor, Solved]:
    """(bound format, latent weight, what was found)."""
    bound = held(format).bind(weight)
    parts = parts_of(bound, weight)
    found = solve(weight, parts, inverse_factor(gram, 0.01), block)
    return bound, hold(bound, parts, found, "here"), found


def error(weight: Tensor, other: Tensor, gram: Tensor) -> float:
    return float((((weight - other) @ gram) * (weight - other)).sum())


@pytest.mark.parametrize("group", [16, "row"])
@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.rpartition("=")[2])
def test_better_than_rounding_and_held_to_the_bit(option: str, group: int | str) -> None:
    x, weight = inputs(), torch.randn(ROWS, COLUMNS)
    gram = 2 * x.T @ x
    formats = [f for f in formats_of(option, group) if isinstance(f, (Grouped, RowMix))]
    for format in formats:
        bound, latent, found = found_for(format, weight, gram)
        codes, plain = bound.encode(latent), held(format).bind(weight).quantize(weight)
        assert codes.scales is not None and codes.scales.shape == found.scales.shape
        assert torch.equal(codes.scales.float(), found.scales)
        assert torch.equal(bound.decode(codes), found.values)
        assert error(weight, found.values, gram) < 0.8 * error(weight, plain, gram)
        shape, base = weight.shape, format.bind(weight)
        assert bound.bits(shape) == base.bits(shape)
        assert bound.packed_layout(shape) == base.packed_layout(shape)
        again = bound.unpack(bound.pack(codes), shape)
        assert torch.equal(again.values, codes.values) and torch.equal(bound.decode(again), found.values)
    if option not in ("quant=w16", "quant=w16_a16") and "bf16" not in option:
        assert formats


@pytest.mark.parametrize("group", [8, 16, 48])
def test_it_is_the_published_loop(group: int) -> None:
    """Rounding a column and removing it from the inverse Hessian, one by one, in fp64 and without blocks."""
    x, weight, format = inputs(columns=96), torch.randn(6, 96), Integer(4, group)
    gram = 2 * x.T @ x
    damped = gram.double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    inverse, work, expected = torch.linalg.inv(damped), weight.double().clone(), []
    for column in range(96):
        if column % group == 0:
            scale = format.rounded_scale(format.raw_scale(work[:, column : column + group].float())).double()
        value = (work[:, column] / scale[:, 0]).round().clamp(-7, 7) * scale[:, 0]
        expected.append(value)
        step = (work[:, column] - value) / inverse[column, column]
        work[:, column + 1 :] -= step[:, None] * inverse[column, column + 1 :]
        inverse = inverse - inverse[:, column, None] * inverse[None, column] / inverse[column, column]
    for block in (1, 20, 32, 128):
        _, _, found = found_for(format, weight, gram, block)
        close = torch.isclose(found.values.double(), torch.stack(expected, 1), atol=1e-6)
        assert close.float().mean() > 0.99  # a tie may fall to the other side in fp32


def test_inputs_that_are_independent_leave_plain_rounding() -> None:
    weight = torch.randn(ROWS, COLUMNS)
    _, _, found = found_for(Ternary(16), weight, torch.eye(COLUMNS))
    assert torch.equal(found.values, Ternary(16).quantize(weight))


def test_the_latent_weight_can_still_move() -> None:
    """It lies in its code's cell, mostly beside the level, and nowhere does its learned scale stop the gradient."""
    x, weight = inputs(), torch.randn(ROWS, COLUMNS)
    for format in (Ternary(16), Integer(3, 16), StretchedElastic(4, 16)):
        bound, latent, found = found_for(format, weight, x.T @ x)
        passed, *_ = bound.gradients(latent, torch.ones_like(latent))
        assert bool((passed == 1).all())
        assert (latent != found.values).float().mean() > 0.3


@pytest.mark.parametrize("format", [Ternary(16), Integer(2, 16), StretchedElastic(4, 16), Affine(3, 16)])
def test_scales_found_again_suit_the_codes_better(format: Grouped) -> None:
    """No scale of one group, a little larger or smaller, would be better: they are the minimum, up to fp16."""
    x, weight = inputs(), torch.randn(ROWS, COLUMNS)
    gram = 2 * x.T @ x
    bound, _, found = found_for(format, weight, gram)
    parts = parts_of(bound, weight)
    again = refitted(weight, found, parts, gram)
    assert error(weight, again.values, gram) < error(weight, found.values, gram)
    assert torch.equal(
        again.values / again.scales.repeat_interleave(16, 1),
        found.values / found.scales.repeat_interleave(16, 1),
    )
    for factor in (0.99, 1.01):
        other = again.values.clone()
        other[:, 16:32] *= factor
        assert error(weight, again.values, gram) < error(weight, other, gram)
    latent = hold(bound, parts, again, "here")
    assert torch.equal(bound.decode(bound.encode(latent)), again.values)


def test_groups_of_zeros_and_dead_inputs() -> None:
    x, weight = inputs(), torch.randn(ROWS, COLUMNS)
    weight[:, :16], x[:, 20] = 0, 0
    for format in (Ternary(16), Integer(4, 16), StretchedElastic(4, 16)):
        bound, latent, found = found_for(format, weight, x.T @ x)
        again = refitted(weight, found, parts_of(bound, weight), x.T @ x)
        for numbers in (latent, found.scales, again.scales, again.values):
            assert bool(numbers.isfinite().all())
        assert bool(again.scales.gt(0).all())
    _, _, found = found_for(Ternary(16), weight, torch.zeros(COLUMNS, COLUMNS))
    assert torch.equal(found.values, LearnedScale(Ternary(16)).bind(weight).quantize(weight))


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(RazorError, match=r"'a\.b', Ternary of group 16, does not keep scales.*=lsq"):
        check_keeps(Ternary(16), "a.b")
    with pytest.raises(RazorError, match="Integer of group tensor"):
        check_keeps(held(Integer(4, "tensor")), "a.b")
    with pytest.raises(RazorError, match="Integer of group 16"):
        check_keeps(RowMix(Integer(4, 16), LearnedScale(Ternary(16)), 0.5), "a.b")
    broken = torch.eye(COLUMNS)
    broken[0, 0] = float("nan")
    with pytest.raises(RazorError, match=r"start.damping=0.01"):
        inverse_factor(broken, 0.01)
