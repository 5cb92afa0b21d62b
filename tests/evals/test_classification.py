"""Accuracy and calibration of an image classifier."""

from __future__ import annotations

import pytest
import torch

from razor import cli
from razor.distill import ImageBatch
from razor.errors import RazorError
from razor.evals import Classification, Score, Scores
from razor.evals.classification import calibration_error, scores_of


def test_calibration_by_hand() -> None:
    """Two bins: three images at 0.6 of which one is right, one image at 0.4 that is right."""
    confidence, right = torch.tensor([0.6, 0.6, 0.6, 0.4]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    expected = 3 / 4 * abs(1 / 3 - 0.6) + 1 / 4 * abs(1 - 0.4)
    assert calibration_error(confidence, right, 2) == pytest.approx(expected, rel=1e-6)
    assert calibration_error(confidence, right, 1) == pytest.approx(abs(0.5 - 0.55), rel=1e-5)
    assert calibration_error(torch.ones(5), torch.ones(5), 15) == 0.0


def test_scores_have_a_standard_error_and_only_accuracy_an_average() -> None:
    found = scores_of(torch.full((5,), 0.5), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]), 15)
    accuracy, calibration = found.tasks
    assert (accuracy.value, accuracy.rows) == (80.0, 5)
    assert accuracy.stderr == pytest.approx(100 * (0.8 * 0.2 / 4) ** 0.5)
    assert calibration.value == pytest.approx(30.0) and calibration.stderr is None
    assert found.average == 80.0
    assert Scores([Score("a", "acc", 10.0, None, 1), Score("b", "acc", 30.0, None, 1)]).average == 20.0


def test_a_model_is_scored_where_it_is_and_left_as_it_was() -> None:
    model = cli.model_source(cli.composed("size", ["model=tiny_resnet"])).load(torch.bfloat16).train()
    pixels = torch.randn(12, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        likely = model.eval()(pixels.bfloat16()).logits.argmax(-1)
    model.train()
    classes = likely.clone()
    classes[:3] = (classes[:3] + 1) % 10
    batches = [ImageBatch.of(pixels[part], classes[part]) for part in (slice(0, 7), slice(7, 12))]
    found = Classification().on(batches).score(model)
    assert found.tasks[0].value == pytest.approx(75.0) and found.tasks[0].rows == 12
    assert model.training and all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_bad_words() -> None:
    with pytest.raises(RazorError, match=r"evals.bins=0"):
        Classification(0)
    with pytest.raises(RazorError, match="scores the held-out images of a run"):
        Classification().score(torch.nn.Linear(1, 1))
