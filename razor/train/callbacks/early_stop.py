"""Stop when held-out text no longer gets better.

A run that is stopped so has come to its end: its student is scored, packed and reported like any other. The
learning rate is then where the schedule had it, which for a cosine is rarely at its best;
`trainer.schedule=constant` goes well with stopping.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L

from razor.errors import RazorError
from razor.train.callbacks.base import RunCallback, RunFacts, settled
from razor.train.callbacks.held_out import check_steering


class EarlyStop(RunCallback):
    """Ends training after `patience` scores in a row that are not better than the best by `min_delta`.

    Args:
        metric: "kl" to the teacher or "cross_entropy", nats per response token on held-out text.
        patience: scores, of which there is one every `callbacks.held_out.every` steps.
        min_delta: nats that count as better.

    Raises:
        RazorError: an argument out of range.
    """

    def __init__(self, metric: str = "kl", patience: int = 3, min_delta: float = 0.0) -> None:
        super().__init__()
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise RazorError(
                f"callbacks.early_stop.patience='{patience}' must be a whole number of at least 1 (scores)."
            )
        if isinstance(min_delta, bool) or not isinstance(min_delta, (int, float)) or not min_delta >= 0:
            raise RazorError(f"callbacks.early_stop.min_delta='{min_delta}' must be 0 or more (nats).")
        self.metric, self.patience, self.min_delta = metric, patience, float(min_delta)
        self.best: float | None = None
        self.waited = 0
        self.stopped_at: int | None = None

    def check(self, run: RunFacts) -> None:  # noqa: D102 - see RunCallback
        check_steering("early_stop", self.metric, run)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was stopped, and is continued for what was left to do, trains no further."""
        super().on_train_start(trainer, pl_module)
        if self.stopped_at is not None:
            trainer.should_stop = True

    def on_held_out(
        self, trainer: L.Trainer, pl_module: L.LightningModule, scores: Mapping[str, float], step: int
    ) -> None:
        """Count scores that are no better; those of formats that will not be packed do not count."""
        if not settled(trainer):
            return
        score = scores[self.metric]
        if math.isfinite(score) and (self.best is None or score < self.best - self.min_delta):
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.waited >= self.patience and step < trainer.max_steps:
            self.stopped_at = step
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(
                    f"\nEarly stop after step {step}: held-out {self.metric} {score:.4g} nats, best "
                    f"{'none' if self.best is None else f'{self.best:.4g}'}, {self.waited} scores ago.",
                    flush=True,
                )

    def state_dict(self) -> dict[str, Any]:
        """Best score, scores since, and the step where training was stopped."""
        return {"best": self.best, "waited": self.waited, "stopped_at": self.stopped_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self.stopped_at = state_dict["stopped_at"]
