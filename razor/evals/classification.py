"""How well an image classifier classifies: accuracy, and whether its confidence can be believed.

**Accuracy**: percent of held-out images whose likeliest class is the right one; its standard error is that of a
share of n independent images, sqrt(p (1 - p) / (n - 1)), as lm-eval has it.

**Expected calibration error** (Guo et al., arXiv 1706.04599, eq. 3): images are sorted by confidence, the
probability of the likeliest class, into bins of equal width; the error is the mean over images of the gap between
accuracy and mean confidence of their bin, in percent points. 0 is a model that is right as often as it says. It is
shown beside the accuracy and is part of no average.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from razor import processes
from razor.distill import Samples
from razor.errors import RazorError
from razor.evals.scores import CALIBRATION, Score, Scores

if TYPE_CHECKING:
    from razor.models import Task


class Classification:
    """Accuracy and calibration on a run's held-out images; used like a `Benchmark`.

    Args:
        bins: of the calibration error.

    Raises:
        RazorError: no positive number of bins.
    """

    task: ClassVar[Task] = "images"
    limit: int | None = None
    batch_size = 0
    """Images are scored in the run's own batches."""

    def __init__(self, bins: int = 15) -> None:
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
            raise RazorError(f"evals.bins={bins} must be a whole number of at least 1.")
        self.bins, self.tasks = bins, ["accuracy", "calibration"]
        self._held_out: Sequence[Samples] | None = None

    def on(self, held_out: Sequence[Samples]) -> Classification:
        """The same, to be asked about these batches."""
        bound = copy.copy(self)
        bound._held_out = held_out
        return bound

    def prepare(self, tokenizer: Any = None) -> None:
        """Nothing has to be fetched."""

    @torch.no_grad()
    def score(self, model: Any, tokenizer: Any = None, description: str = "") -> Scores:
        """Score a classifier where it is; of several processes each its part, and all get the same scores.

        Raises:
            RazorError: nobody said on what.
        """
        from razor.models import inputs_of  # and Transformers with it, which many a command can do without

        if self._held_out is None:
            raise RazorError("evals=classification scores the held-out images of a run: python train.py ...")
        training, device = model.training, next(model.parameters()).device
        model.eval()
        mine = [torch.zeros(0, 2, dtype=torch.float64)]
        for batch in (b.to(device) for b in self._held_out[processes.rank() :: processes.world()]):
            likely = model(**inputs_of(model, batch)).logits.double().softmax(-1).max(-1)
            right = likely.indices == batch.labels[:, 0]
            mine.append(torch.stack([likely.values, right.double()], 1).cpu())
        nn.Module.train(model, training)
        found = torch.tensor([row for part in processes.gathered(torch.cat(mine).tolist()) for row in part])
        return scores_of(found[:, 0], found[:, 1], self.bins)

    def score_cached(
        self, model: Any, tokenizer: Any = None, fingerprint: str = "", description: str = ""
    ) -> Scores:
        """`score`: it takes seconds, so nothing is kept."""
        return self.score(model, tokenizer, description)


def scores_of(confidence: Tensor, right: Tensor, bins: int) -> Scores:
    """Accuracy and calibration error of n images.

    Args:
        confidence: [n] probability of each image's likeliest class.
        right: [n] 1 where it is the right one, else 0.
        bins: see `Classification`.
    """
    n, share = len(right), float(right.double().mean())
    error = None if n < 2 else 100 * (share * (1 - share) / (n - 1)) ** 0.5
    return Scores(
        [
            Score("accuracy", "acc", 100 * share, error, n),
            Score("calibration", CALIBRATION, 100 * calibration_error(confidence, right, bins), None, n),
        ]
    )


def calibration_error(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Expected calibration error of [n] confidences and [n] zeros and ones, 0 to 1."""
    places = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # (0, 1/bins] is the first
    gaps = torch.zeros(bins, dtype=torch.float64)
    gaps.index_add_(0, places, right.double() - confidence.double())
    return float(gaps.abs().sum() / len(right))
