"""Figures: real images of what is there, none of what is not."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from razor.evals.figures import draw_losses, draw_score_vs_ratio
from razor.evals.held_out import HeldOut
from razor.evals.report import Row
from razor.evals.scores import Score, Scores


def is_a_picture(path: Path) -> bool:
    """Readable, large enough, and not one colour."""
    picture = matplotlib.image.imread(path)
    return picture.shape[0] > 200 and picture.shape[1] > 400 and picture.std() > 0.01


def rows(tasks: bool) -> list[Row]:
    return [
        Row(
            name,
            "W4-A8-KV8",
            Scores([Score("piqa", "acc", value, 1.0, 9)] if tasks else []),
            HeldOut(9.0, value / 10, 50.0, 90),
            ratio,
            ratio,
            1000,
        )
        for name, value, ratio in (("teacher", 60.0, 1.0), ("before", 30.0, 4.0), ("after", 50.0, 4.0))
    ]


def test_loss_curves(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text("loss/afd,loss/total,step,tokens\n0.5,3.0,0,10\n,2.0,1,10\n0.25,1.5,2,10\n,,3,10\n")
    assert draw_losses(metrics, tmp_path / "losses.png")
    assert is_a_picture(tmp_path / "losses.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["losses.png", "metrics.csv"]


@pytest.mark.parametrize("content", [None, "", "step,tokens\n0,10\n", "loss/total,step\n"])
def test_no_losses_no_figure(tmp_path: Path, content: str | None) -> None:
    metrics = tmp_path / "metrics.csv"
    if content is not None:
        metrics.write_text(content)
    assert not draw_losses(metrics, tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()


@pytest.mark.parametrize("tasks", [True, False])
def test_score_against_ratio(tmp_path: Path, tasks: bool) -> None:
    draw_score_vs_ratio(rows(tasks), tmp_path / "figure.png")
    assert is_a_picture(tmp_path / "figure.png")
