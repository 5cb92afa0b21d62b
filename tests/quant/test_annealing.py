"""Soft-to-hard ternary: soft in training alone, hard at the end and wherever the model is looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from razor.errors import RazorError
from razor.quant import FakeQuantizer, Placement, Plan, QuantLinear, Ternary, quantize_modules, set_progress

SOFT = Ternary(16, anneal=0.5, temperature=0.4)


def model():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(16, 8, bias=False))
    return quantize_modules(block, Plan({"0": Placement(SOFT)}), torch.float32).train()


def levels(quantized: QuantLinear) -> int:
    """Most different magnitudes in a group."""
    weight = quantized.quantized_weight(torch.float32).detach()
    return max(len(row.abs().unique()) for row in weight)


def test_softness_falls_to_nothing():
    student = model()
    hard = SOFT.quantize(student[0].weight.detach())
    distances = []
    for progress in (0.0, 0.2, 0.4, 0.49, 0.5, 1.0):
        set_progress(student, progress)
        distances.append(float((student[0].quantized_weight(torch.float32) - hard).abs().mean()))
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.01
    assert distances[-2] == distances[-1] == 0


def test_what_is_looked_at_is_ternary():
    student = model()
    set_progress(student, 0.0)
    assert levels(student[0]) > 2
    student.eval()
    assert levels(student[0]) <= 2
    format = student[0].weights.format
    assert torch.equal(
        format.decode(format.encode(student[0].weight)), student[0].quantized_weight(torch.float32)
    )


def test_a_loop_that_tells_no_progress_is_told_so():
    with pytest.raises(RazorError, match=r"anneal=0.5.*razor\.quant\.set_progress"):
        model()(torch.randn(2, 16))


def test_two_models_of_one_plan_do_not_share_their_progress():
    first, second = model(), model()
    set_progress(first, 0.1)
    set_progress(second, 0.9)
    assert levels(first[0]) > 2 >= levels(second[0])


def test_without_annealing_nothing_is_asked():
    plain = Ternary(16)
    assert FakeQuantizer.for_weight(torch.randn(2, 16), plain).format is plain
    plain.train()(torch.randn(2, 16))


@pytest.mark.parametrize("progress", [-0.1, 1.1])
def test_progress_is_a_fraction(progress):
    with pytest.raises(RazorError, match=r"must lie in 0..1"):
        set_progress(model(), progress)
