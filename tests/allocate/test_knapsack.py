"""The knapsack: what brute force finds, within the limit, whatever costs and losses are."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.allocate.knapsack import solve

COSTS = st.sampled_from([1.58, 2.0, 3.0, 4.0, 1.58 * 3, 12.0])
LOSSES = st.floats(-1, 10, allow_nan=False)
CLASSES = st.lists(st.lists(st.tuples(COSTS, LOSSES), min_size=1, max_size=4), min_size=1, max_size=6)


def brute(classes, limit):
    """Least loss of all combinations within the limit; None if there are none."""
    found = [
        sum(loss for _, loss in each)
        for each in itertools.product(*classes)
        if sum(cost for cost, _ in each) <= limit * (1 + 1e-9)
    ]
    return min(found, default=None)


@given(CLASSES, st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_equals_brute_force(classes, share):
    low = sum(min(cost for cost, _ in each) for each in classes)
    high = sum(max(cost for cost, _ in each) for each in classes)
    limit = low + share * (high - low)
    best, found = brute(classes, limit), solve(classes, limit)
    assert found is not None and best is not None
    assert found.gap == 0
    assert found.loss == pytest.approx(best, abs=1e-9)
    chosen = [each[index] for each, index in zip(classes, found.chosen, strict=True)]
    assert sum(loss for _, loss in chosen) == pytest.approx(found.loss, abs=1e-9)
    assert sum(cost for cost, _ in chosen) == pytest.approx(found.cost) and found.cost <= limit * (1 + 1e-9)


@given(CLASSES)
@settings(max_examples=50, deadline=None)
def test_nothing_fits_below_the_least(classes):
    least = sum(min(cost for cost, _ in each) for each in classes)
    assert solve(classes, 0.99 * least) is None
    assert solve(classes, least) is not None


@given(CLASSES, st.lists(st.floats(0, 1), min_size=2, max_size=5))
@settings(max_examples=50, deadline=None)
def test_more_room_never_loses_more(classes, shares):
    low = sum(min(cost for cost, _ in each) for each in classes)
    high = sum(max(cost for cost, _ in each) for each in classes)
    losses = [solve(classes, low + share * (high - low)).loss for share in sorted(shares)]
    assert losses == sorted(losses, reverse=True) or max(np.diff(losses)) < 1e-9


@pytest.mark.parametrize("alike", [True, False])
def test_hundreds_of_matrices_are_solved_to_the_end(alike):
    """Layers that are alike make many equal sums; layers that are not, many different ones."""
    chance = np.random.default_rng(0)
    shapes = [576 * 576, 192 * 576, 192 * 576, 576 * 576, 1536 * 576, 1536 * 576, 1536 * 576] * 30
    classes = []
    for size in shapes:
        scale = size * (1.0 if alike else float(chance.lognormal(sigma=1.5)))
        classes.append([(bits * size, scale * 4.0**-bits) for bits in (1.58, 2, 3, 4)])
    limit = 2.79 * sum(shapes)
    found = solve(classes, limit)
    assert found is not None and found.gap == 0 and found.cost <= limit * (1 + 1e-9)
    assert found.cost > 0.999 * limit
    uniform = sum(loss for each in classes for loss in [0.5 * each[0][1] + 0.5 * each[3][1]])
    assert found.loss < uniform and math.isfinite(found.loss)
