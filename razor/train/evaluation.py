"""The evaluation callback: teacher, student before training, student after, all on the same rows and text.

The student is scored as it is trained, with activations and KV cache quantized. The teacher's benchmark
scores are cached for the next run; what a run found is kept in its folder, so a resumed run scores nothing
twice. The teacher is borrowed: a run that trains from cached targets loads it for as long as scoring takes, and
no longer.
"""

from __future__ import annotations

import gc
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
from razor.train.teaching import Lend

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Evaluation(L.Callback):
    """Scores the three models of a report.

    Args:
        benchmark: the tasks.
        held_out: batches of held-out text.
        lend: gives the 16-bit model.
        tokenizer: of both.
        fingerprint: of the teacher and the dtype it computes in, for the cache of its scores.
        folder: of the run; scores lie in its `scores/`.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        held_out: list[Batch],
        lend: Lend,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
        folder: Path,
    ) -> None:
        self.benchmark, self.held_out, self.lend = benchmark, held_out, lend
        self.tokenizer, self.fingerprint, self.folder = tokenizer, fingerprint, folder / "scores"

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The teacher and plain rounding, unless this run already has them."""
        if trainer.is_global_zero:
            # a resumed student is no longer plain rounding
            self.score(["teacher", "before"] if trainer.ckpt_path is None else ["teacher"], pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The trained student, if training was not stopped early."""
        if trainer.is_global_zero and trainer.global_step >= trainer.max_steps:
            pl_module.zero_grad(set_to_none=True)  # of the last step: room for a teacher that is loaded
            self.score(["after"], pl_module)

    def score(self, names: list[str], module: L.LightningModule) -> None:
        """Score what has not been scored yet, and give the teacher back."""
        if missing := [name for name in names if not self._path(name).is_file()]:
            teacher = nn.Module.to(self.lend(), module.device)
            for name in missing:
                self._score(name, module.student, teacher)  # type: ignore[arg-type]
            del teacher
            gc.collect()

    def _score(self, name: str, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        model = teacher if name == "teacher" else student
        if name == "teacher":
            scores = self.benchmark.score_cached(model, self.tokenizer, self.fingerprint, f"scoring {name}")
        else:
            scores = self.benchmark.score(model, self.tokenizer, f"scoring {name}")
        held_out = score_held_out(model, teacher, self.held_out)
        print(f"{name}: held-out KL {held_out.kl:.3f} nats, perplexity {held_out.perplexity:.4g}", flush=True)
        with atomic_write(self._path(name)) as temporary:
            temporary.write_text(json.dumps({"scores": scores.to_dict(), "held_out": held_out.to_dict()}))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def found(self, name: str) -> tuple[Scores, HeldOut]:
        """What `score` kept."""
        data: dict[str, Any] = json.loads(self._path(name).read_text())
        return Scores.from_dict(data["scores"]), HeldOut(**data["held_out"])
