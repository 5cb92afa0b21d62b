from __future__ import annotations

import pytest
import torch

from razor.distill import AdaptiveFeatures
from razor.errors import RazorError

B, T, WIDTH, LAYERS = 2, 7, 10, 6


def states(seed: int = 0) -> dict[int, torch.Tensor]:
    """A teacher whose layers work differently hard."""
    torch.manual_seed(seed)
    x = torch.randn(B, T, WIDTH)
    found = {0: x}
    for index, strength in enumerate((0.1, 2.0, 0.5, 0.05, 1.0, 0.3), start=1):
        x = x * (1 + 0.2 * index) + strength * torch.randn_like(x)
        found[index] = x
    return found


ATTENDED = torch.ones(B, T, dtype=torch.bool)
ATTENDED[1, 4:] = False


def ranked(name: str, found: dict[int, torch.Tensor], attended: torch.Tensor) -> list[int]:
    """Most active first, one token at a time and in float64."""
    scores = {}
    for index in range(1, LAYERS + 1):
        pairs = [
            (found[index - 1][b, t].double(), found[index][b, t].double())
            for b, t in attended.nonzero().tolist()
        ]
        each = {
            "cosine": [-(x @ y) / (x.norm() * y.norm()) for x, y in pairs],
            "l2": [(y - x).square().sum().sqrt() for x, y in pairs],
            "variance": [y.var() for _, y in pairs],
        }[name]
        scores[index] = float(sum(each)) / len(each)
    return sorted(scores, key=lambda i: -scores[i])


@pytest.mark.parametrize("ranking", ["cosine", "l2", "variance"])
@pytest.mark.parametrize("top", [1, 3, LAYERS])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_layers_are_chosen_by_the_teachers_activity(ranking, top, seed):
    found = states(seed)
    chosen = AdaptiveFeatures(top, ranking).select(found, ATTENDED)
    assert chosen == ranked(ranking, found, ATTENDED)[:top]


@pytest.mark.parametrize("ranking", ["cosine", "l2", "variance"])
def test_padding_does_not_count(ranking):
    found = states()
    chosen = AdaptiveFeatures(3, ranking).select(found, ATTENDED)
    for index in found:
        found[index][~ATTENDED] = 100.0 * torch.randn(3, WIDTH) * (index + 1)
    assert AdaptiveFeatures(3, ranking).select(found, ATTENDED) == chosen


def test_the_rankings_differ():
    assert (
        len(
            {
                tuple(AdaptiveFeatures(LAYERS, r).select(states(), ATTENDED))
                for r in ("cosine", "l2", "variance")
            }
        )
        > 1
    )


def test_bf16_states_are_ranked_in_fp32():
    found = {index: state.bfloat16() for index, state in states().items()}
    assert AdaptiveFeatures(3).select(found, ATTENDED) == ranked("cosine", found, ATTENDED)[:3]


def test_the_loss_is_the_mean_squared_error_over_the_width():
    student, teacher = torch.randn(5, WIDTH, dtype=torch.bfloat16), torch.randn(5, WIDTH)
    found = AdaptiveFeatures().per_token(student, teacher)
    wanted = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(s, t, strict=True)) / WIDTH
        for s, t in zip(student, teacher, strict=True)
    ]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_gradient_of_the_loss():
    student, teacher = torch.randn(5, WIDTH, requires_grad=True), torch.randn(5, WIDTH)
    AdaptiveFeatures().per_token(student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, 2 / WIDTH * (student.detach() - teacher))


def test_every_layer_of_the_teacher_is_looked_at():
    assert AdaptiveFeatures(3).teacher_layers(6) == {0, 1, 2, 3, 4, 5, 6}
    with pytest.raises(RazorError, match="top is 7 but the teacher has 6 layers"):
        AdaptiveFeatures(7).teacher_layers(6)


def test_bad_arguments():
    with pytest.raises(RazorError, match=r"top is '0'.*at least 1"):
        AdaptiveFeatures(0)
    with pytest.raises(RazorError, match=r"'cosin'. Choices: cosine, l2, variance"):
        AdaptiveFeatures(ranking="cosin")
