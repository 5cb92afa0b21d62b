"""The evaluation callback: teacher, student before training, student after, all on the same rows and text.

The student is scored as it is trained, with activations and KV cache quantized. The teacher's benchmark
scores are cached for the next run; what a run found is kept in its folder, so a resumed run scores nothing
twice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import nn

from razor.distill import Batch
from razor.evals.harness import Benchmark
from razor.evals.held_out import HeldOut, score_held_out
from razor.evals.scores import Scores
from razor.storage import atomic_write

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Evaluation(L.Callback):
    """Scores the three models of a report.

    Args:
        benchmark: the tasks.
        held_out: batches of held-out text.
        teacher: the 16-bit model.
        tokenizer: of both.
        fingerprint: of the teacher and the dtype it computes in, for the cache of its scores.
        folder: of the run; scores lie in its `scores/`.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        held_out: list[Batch],
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
        folder: Path,
    ) -> None:
        self.benchmark, self.held_out, self.teacher = benchmark, held_out, teacher
        self.tokenizer, self.fingerprint, self.folder = tokenizer, fingerprint, folder / "scores"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The teacher and plain rounding, unless this run already has them."""
        nn.Module.to(self.teacher, pl_module.device)
        if trainer.is_global_zero:
            self.score("teacher", self.teacher)
            if trainer.ckpt_path is None:  # a resumed student is no longer plain rounding
                self.score("before", pl_module.student)  # type: ignore[arg-type]

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The trained student, if training was not stopped early."""
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
            self.score("after", pl_module.student)  # type: ignore[arg-type]

    def score(self, name: str, model: PreTrainedModel) -> None:
        """Score one model and keep the result in the run folder."""
        path = self.folder / f"{name}.json"
        if path.is_file():
            return
        if name == "teacher":
            scores = self.benchmark.score_cached(model, self.tokenizer, self.fingerprint, f"scoring {name}")
        else:
            scores = self.benchmark.score(model, self.tokenizer, f"scoring {name}")
        held_out = score_held_out(model, self.teacher, self.held_out)
        print(f"{name}: held-out KL {held_out.kl:.3f} nats, perplexity {held_out.perplexity:.4g}", flush=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps({"scores": scores.to_dict(), "held_out": held_out.to_dict()}))

    def found(self, name: str) -> tuple[Scores, HeldOut]:
        """What `score` kept."""
        data: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_text())
        return Scores.from_dict(data["scores"]), HeldOut(**data["held_out"])
