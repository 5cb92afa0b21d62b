"""The best student so far, kept in `checkpoints/best.ckpt`.

Best by held-out score. The file holds the student alone and is moved into place when it is whole. With `use` it
is this student that is scored, packed and reported at the end, and not the last one. Choosing by held-out text
makes the score on the same text a little too good: its KL in the report is no longer that of text nobody looked
at. Benchmarks are not touched by that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from razor.errors import RazorError
from razor.train.callbacks.base import RunCallback, RunFacts, check_whole, completed, settled
from razor.train.callbacks.ema import EMA
from razor.train.callbacks.held_out import check_steering

BEST = "best.ckpt"


class Best(RunCallback):
    """Keeps the student of the best held-out score.

    Args:
        metric: "kl" to the teacher or "cross_entropy", nats per response token.
        use: whether it is the student of the run in the end.
    """

    def __init__(self, metric: str = "kl", use: bool = True) -> None:
        super().__init__()
        self.metric, self.use = metric, use
        self.best: float | None = None
        self.step: int | None = None

    def check(self, run: RunFacts) -> None:
        """See `RunCallback`; two callbacks cannot both have the last word on the student."""
        check_steering("best", self.metric, run)
        if self.use and any(other.use for other in run.others(EMA, self)):  # type: ignore[attr-defined]
            raise RazorError(
                "callbacks.best.use and callbacks.ema.use both give the run its final student: set one to false."
            )
        check_whole("best", run.student.parameters(), "keeps")

    def on_held_out(
        self, trainer: L.Trainer, pl_module: L.LightningModule, scores: Mapping[str, float], step: int
    ) -> None:
        """Keep the student if it is the best; those in formats that will not be packed do not count."""
        better = self.best is None or scores[self.metric] < self.best
        if settled(trainer) and math.isfinite(scores[self.metric]) and better:
            self.best, self.step = scores[self.metric], step
            trainer.save_checkpoint(self._path(trainer), weights_only=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the best student in the place of the last one, before it is scored.

        Raises:
            RazorError: the file is gone or damaged.
        """
        if not self.use or self.step is None or not completed(pl_module):
            return
        path = self._path(trainer)
        try:
            kept = torch.load(path, map_location="cpu", weights_only=True)
            pl_module.load_state_dict(kept["state_dict"])
        except Exception as error:  # whatever a torn file may be to zip, pickle and torch
            raise RazorError(
                f"The best student '{path}' cannot be read ({type(error).__name__}); the last one lies beside it."
            ) from error
        if kept["global_step"] != self.step:
            raise RazorError(
                f"'{path}' is of step {kept['global_step']}, and the best was step {self.step}: an interrupted "
                "attempt has overwritten it. callbacks.best.use=false takes the last student."
            )
        if trainer.is_global_zero:
            print(
                f"The student is the best one, of step {kept['global_step']} ({self.metric} {self.best:.4g})."
            )

    @staticmethod
    def _path(trainer: L.Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints" / BEST

    def state_dict(self) -> dict[str, Any]:
        """The best score and its step."""
        return {"best": self.best, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.best, self.step = state_dict["best"], state_dict["step"]
