"""The evaluation callback: teacher, student before training, student after, all on the same rows and text.

The student is scored as it is trained, with activations and KV cache quantized. The teacher's benchmark
scores are cached for the next run; what a run found is kept in its folder, so a resumed run scores nothing
twice. The teacher is borrowed: a run that trains from cached targets loads it for as long as scoring takes, and
no longer.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import nn

from razor import processes
from razor.distill import Samples
from razor.evals import Benchmark, Classification
from razor.evals.held_out import HeldOut, score_held_out
from razor.evals.scores import Scores
from razor.storage import atomic_write
from razor.train.module import DistillModule
from razor.train.sharding import is_sharded, whole
from razor.train.teaching import Lend

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Evaluation(L.Callback):
    """Scores the three models of a report.

    Args:
        benchmark: the tasks.
        held_out: batches of held-out text or images.
        lend: gives the 16-bit model.
        tokenizer: of both; None if they read no text.
        fingerprint: of the teacher and the dtype it computes in, for the cache of its scores.
        folder: of the run; scores lie in its `scores/`.
        plain: makes a student by plain rounding, for a run that goes on and has lost that row.
    """

    def __init__(
        self,
        benchmark: Benchmark | Classification,
        held_out: list[Samples],
        lend: Lend,
        tokenizer: PreTrainedTokenizerBase | None,
        fingerprint: str,
        folder: Path,
        plain: Callable[[], PreTrainedModel],
    ) -> None:
        self.benchmark, self.held_out, self.lend = benchmark.on(held_out), held_out, lend
        self.tokenizer, self.fingerprint, self.folder = tokenizer, fingerprint, folder / "scores"
        self.plain = plain

    def on_fit_start(self, trainer: L.Trainer, pl_module: DistillModule) -> None:  # type: ignore[override]
        """The teacher and plain rounding, unless this run already has them."""
        # a resumed student is no longer plain rounding
        self.score(["teacher", "before"], pl_module, None if trainer.ckpt_path is None else self.plain)

    def on_fit_end(self, trainer: L.Trainer, pl_module: DistillModule) -> None:  # type: ignore[override]
        """The trained student, unless somebody asked to stop before the end."""
        if not pl_module.interrupted:
            pl_module.zero_grad(set_to_none=True)  # of the last step: room for a teacher that is loaded
            if not is_sharded(pl_module):
                pl_module.to(trainer.strategy.root_device)  # from where Lightning has just moved it away
            self.score(["after"], pl_module)

    def score(
        self, names: list[str], module: DistillModule, plain: Callable[[], PreTrainedModel] | None = None
    ) -> None:
        """Score what has not been scored yet, each process its part, and give the teacher back.

        Args:
            names: of the rows.
            module: teacher and student; the latter is what "before" and "after" mean.
            plain: makes another student for "before".
        """
        missing = processes.gathered([name for name in names if self._read(name) is None])[0]
        if missing:
            teacher = nn.Module.to(self.lend(), module.device)
            with whole(module, teacher):
                for name in missing:
                    again = name == "before" and plain is not None
                    student = nn.Module.to(plain(), module.device) if again and plain else module.student
                    self._score(name, student, teacher)
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
        if processes.rank() == 0:
            with atomic_write(self._path(name)) as temporary:
                temporary.write_text(json.dumps({"scores": scores.to_dict(), "held_out": held_out.to_dict()}))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def found(self, name: str) -> tuple[Scores, HeldOut]:
        """What `score` kept."""
        kept = self._read(name)
        assert kept is not None
        return kept

    def _read(self, name: str) -> tuple[Scores, HeldOut] | None:
        """What `score` kept; None if there is nothing, or a damaged file, which is said."""
        path = self._path(name)
        if not path.is_file():
            return None
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            return Scores.from_dict(data["scores"]), HeldOut(**data["held_out"])
        except (ValueError, KeyError, TypeError) as error:
            print(f"'{path}' is damaged ({type(error).__name__}), so this is scored again.", flush=True)
            return None
