"""The student on held-out text while it trains: the number that stopping and choosing go by.

Training losses are noisy, and they are of text that is being learned. Every so often the student is scored on the
held-out rows just as it will be at the end: hard codes, activations and keys quantized. The scores are logged and
told to every callback that listens (`RunCallback.on_held_out`), so that early stopping and the best checkpoint
share one evaluation. It costs a forward pass of teacher and student over the held-out text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
from torch import nn

from razor.distill import Samples
from razor.errors import RazorError
from razor.evals.held_out import score_held_out
from razor.train.callbacks.base import RunCallback, RunFacts, check_every, due
from razor.train.evaluation import Evaluation
from razor.train.sharding import whole

METRICS = ("kl", "cross_entropy")
"""What a run can be steered by, nats per response token; smaller is better."""


class HeldOutScores(RunCallback):
    """Logs `held_out/kl`, `held_out/agreement` (with a teacher), `held_out/cross_entropy`, `held_out/perplexity`.

    Args:
        every: optimizer steps between scores; the last step of the run is scored too.
        batches: how many of the held-out batches; None: all.

    Raises:
        RazorError: an argument out of range.
    """

    def __init__(self, every: int = 20, batches: int | None = None) -> None:
        super().__init__()
        check_every("held_out", every)
        if batches is not None and (not isinstance(batches, int) or batches < 1):
            raise RazorError(
                f"callbacks.held_out.batches='{batches}' must be a whole number of at least 1, or null."
            )
        self.every, self.batches = every, batches

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Score, log and tell, when it is time."""
        if not due(step, self.every, trainer):
            return
        scores = self.score(pl_module, held_out_of(trainer)[: self.batches])
        self.show(pl_module, {f"held_out/{name}": value for name, value in scores.items()})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunCallback):
                callback.on_held_out(trainer, pl_module, scores, step)

    @staticmethod
    def score(pl_module: L.LightningModule, batches: Sequence[Samples]) -> dict[str, float]:
        """The student's scores, the same in every process."""
        student: Any = pl_module.student
        teacher: Any = getattr(pl_module, "teacher", None)
        with whole(pl_module, nn.Module() if teacher is None else teacher):  # type: ignore[arg-type]
            found = score_held_out(student, student if teacher is None else teacher, batches)
        scores = {"cross_entropy": math.log(found.perplexity), "perplexity": found.perplexity}
        if teacher is not None:
            scores |= {"kl": found.kl, "agreement": found.agreement}
        return scores


def held_out_of(trainer: L.Trainer) -> list[Samples]:
    """The held-out batches of a run."""
    found = [c.held_out for c in trainer.callbacks if isinstance(c, Evaluation)]  # type: ignore[attr-defined]
    return found[0]


def check_steering(name: str, metric: str, run: RunFacts) -> None:
    """Check a callback that goes by held-out scores.

    Raises:
        RazorError: an unknown metric, one that needs a teacher where none runs, or nobody who scores.
    """
    if metric not in METRICS:
        raise RazorError(f"callbacks.{name}.metric='{metric}'. Choices: {', '.join(METRICS)}.")
    if metric == "kl" and not run.teacher:
        raise RazorError(
            f"callbacks.{name}.metric=kl compares with a teacher, and none runs beside the student here: "
            f"callbacks.{name}.metric=cross_entropy."
        )
    if not any(isinstance(callback, HeldOutScores) for callback in run.callbacks):
        raise RazorError(f"callbacks={name} goes by held-out scores: callbacks=[default,held_out,{name}].")
