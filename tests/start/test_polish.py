"""Codes visited again: never worse, the best of their kind, and held to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch

from razor.quant import Affine, Grouped, Integer, StretchedElastic, Ternary
from razor.start.holding import hold, parts_of
from razor.start.polish import polished
from razor.start.solve import damped, refitted
from tests.start.test_solve import COLUMNS, ROWS, error, found_for, inputs

FORMATS = [Ternary(16), Integer(2, 16), Integer(4, 32), StretchedElastic(4, 16), Affine(3, 16)]


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: type(format).__name__)
def test_every_visit_lowers_the_error_and_the_first_by_much(format: Grouped) -> None:
    x, weight = inputs(), torch.randn(ROWS, COLUMNS)
    gram = 2 * x.T @ x
    bound, _, found = found_for(format, weight, gram)
    parts, exact = parts_of(bound, weight), damped(gram, 0.01)
    errors = [error(weight, found.values, exact)]
    for _ in range(4):
        found = polished(weight, found, parts, gram, 0.01, block=24)
        errors.append(error(weight, found.values, exact))
        found = refitted(weight, found, parts, gram)
    assert all(later <= earlier * (1 + 1e-5) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.95 * errors[0]
    latent = hold(bound, parts, found, "here")
    assert torch.equal(bound.decode(bound.encode(latent)), found.values)


@pytest.mark.parametrize("block", [1, 16, 40, 128])
def test_no_single_code_can_be_better(block: int) -> None:
    """After many visits another code anywhere makes the error larger; and blocks change nothing."""
    x, weight = inputs(), torch.randn(6, COLUMNS)
    gram = x.T @ x
    bound, _, found = found_for(Ternary(16), weight, gram)
    parts, exact = parts_of(bound, weight), damped(gram, 0.01).double()
    for _ in range(60):
        found = polished(weight, found, parts, gram, 0.01, block)
    least = [
        error(w[None].double(), v[None].double(), exact) for w, v in zip(weight, found.values, strict=True)
    ]
    for row, column, code in itertools.product(range(6), range(COLUMNS), (-1, 0, 1)):
        other = found.values[row].clone()
        other[column] = code * found.scales[row, column // 16]
        assert error(weight[row : row + 1].double(), other[None].double(), exact) >= least[row] * (1 - 1e-5)


def test_the_latent_says_where_the_best_weight_lies() -> None:
    """Independent inputs: the best weight is the weight itself, and codes are plain rounding's."""
    weight = torch.randn(ROWS, COLUMNS)
    bound, _, found = found_for(Ternary(16), weight, torch.eye(COLUMNS))
    again = polished(weight, found, parts_of(bound, weight), torch.eye(COLUMNS), 0.01, 128)
    assert torch.equal(again.values, found.values)
    torch.testing.assert_close(again.weights, weight, atol=1e-5, rtol=0)


def test_inputs_that_are_all_zero_change_nothing_for_the_worse() -> None:
    weight, nothing = torch.randn(ROWS, COLUMNS), torch.zeros(COLUMNS, COLUMNS)
    bound, _, found = found_for(Ternary(16), weight, nothing)
    again = polished(weight, found, parts_of(bound, weight), nothing, 0.01, 128)
    assert again.values.isfinite().all() and torch.equal(again.values, found.values)
