"""Weights over a run: their ends, their shape, and that nothing at weight 0 is computed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from razor.distill import AdaptiveFeatures, Cosine, ForwardKL, Linear, Objective, OffAfter, Shape
from razor.errors import RazorError

SHAPE = Shape("a model", layers=4, width=12, heads=2, kv_heads=1, head_dim=6)


def course(schedule, steps: int) -> list[float]:
    return [schedule.at(step, steps) for step in range(steps)]


@given(
    start=st.floats(0, 10),
    end=st.floats(0, 10),
    steps=st.integers(1, 50),
    over=st.floats(0.1, 1),
    kind=st.sampled_from([Linear, Cosine]),
)
def test_a_ramp_goes_from_one_end_to_the_other_and_stays(start, end, steps, over, kind):
    schedule = kind(start, end, over)
    values = course(schedule, steps)
    assert values[0] == pytest.approx(start) and schedule.largest == max(start, end)
    if over * steps >= 2:
        assert values[-1] == pytest.approx(end)
    rising = sorted(values, reverse=end < start)
    assert values == pytest.approx(rising) and min(start, end) - 1e-9 <= min(values)
    assert max(values) <= max(start, end) + 1e-9


def test_shapes():
    assert course(Linear(1, 0), 5) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert course(Linear(1, 0, over=0.5), 10)[:5] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert course(Cosine(2, 0), 5) == pytest.approx(
        [2, 1 + math.cos(math.pi / 4), 1, 1 - math.cos(math.pi / 4), 0]
    )
    assert course(OffAfter(0.5, 2), 4) == [0.5, 0.5, 0, 0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(-1, 0), "start=-1 must be 0 or more"),
        (lambda: Cosine(0, math.inf), "end=inf"),
        (lambda: Linear(0, 1, 0), "over=0 is a part of the run"),
        (lambda: OffAfter(1, 0), "step=0 must be at least 1"),
        (lambda: OffAfter(-1, 5), "weight=-1"),
    ],
)
def test_bad_schedules(make, words):
    with pytest.raises(RazorError, match=words):
        make()


def test_an_objective_reads_keeps_and_follows_schedules():
    losses = {"kld": ForwardKL(), "afd": AdaptiveFeatures()}
    objective = Objective(losses, {"kld": 1.0, "afd": {"kind": "OffAfter", "weight": 0.1, "step": 3}})
    again = Objective.from_spec(objective.spec())
    assert again.spec() == objective.spec()
    assert objective.spec()["weights"]["afd"] == {"kind": "OffAfter", "weight": 0.1, "step": 3}
    objective.fit(SHAPE, SHAPE)
    assert objective.scheduled == ["afd"] and objective.now == {"kld": 1.0, "afd": 0.1}
    assert objective.teacher_needs().states == frozenset(range(5))
    objective.set_step(3, 10)
    assert objective.now["afd"] == 0 and not objective.layer_losses
    assert objective.teacher_needs().states == frozenset()


def test_a_loss_that_is_never_on_is_dropped():
    objective = Objective({"kld": ForwardKL(), "afd": AdaptiveFeatures()}, {"kld": 1, "afd": Linear(0, 0)})
    assert list(objective.losses) == ["kld"]


@pytest.mark.parametrize(
    ("weight", "words"),
    [
        (
            {"kind": "Cubic", "start": 1, "end": 0},
            r"distill.weights.kld.kind='Cubic' is unknown. Choices: Cosine, L",
        ),
        ({"kind": "Linear", "start": 1}, "distill.weights.kld.end is missing"),
        ({"kind": "Linear", "start": 1, "end": "none"}, "distill.weights.kld.end='none' must be a number"),
        ("much", "distill.weights.kld='much' must be a number"),
        (float("nan"), "distill.weights.kld=nan"),
    ],
)
def test_bad_weights_say_where(weight, words):
    with pytest.raises(RazorError, match=words):
        Objective({"kld": ForwardKL()}, {"kld": weight})
