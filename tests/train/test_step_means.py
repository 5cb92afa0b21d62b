"""A step's numbers are those of the large batch that its micro-batches make."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from razor.train.step_means import StepMeans


@given(st.lists(st.tuples(st.floats(0.01, 10), st.integers(0, 50), st.floats(-5, 5)), min_size=1, max_size=6))
def test_counts_add_up_and_values_are_averaged_by_share(parts: list[tuple[float, int, float]]) -> None:
    step = StepMeans()
    for share, tokens, loss in parts:
        step.add(share, {"tokens": tokens}, {"loss": loss})
    weight = sum(share for share, _, _ in parts)
    assert step.take() == pytest.approx(
        {
            "tokens": sum(tokens for _, tokens, _ in parts),
            "loss": sum(share * loss for share, _, loss in parts) / weight,
        }
    )


def test_one_micro_batch_is_itself_to_the_last_bit_and_a_step_starts_anew() -> None:
    step = StepMeans()
    for value in (0.1, 1 / 3):
        step.add(1.0, {}, {"loss": value})
        assert step.take() == {"loss": value}


def test_chosen_layers_are_not_averaged() -> None:
    step = StepMeans()
    for layer in (1.0, 4.0):
        step.add(1.0, {}, {"afd/layer_0": layer, "loss": layer})
    assert step.take() == {"afd/layer_0": 4.0, "loss": 2.5}
