"""Benchmark scores by lm-eval, on a model in memory.

A score is only comparable with others when the harness behind it is the usual one, so prompts,
metrics and standard errors are all lm-eval's. What this module adds is manners: every download and
check happens before the heavy work, the random state and the model come back as they were, output
is one progress bar, and the scores of a model that does not change (the teacher) are kept.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from razor import processes
from razor.distill import Samples
from razor.errors import RazorError
from razor.evals import kept_scores
from razor.evals.generated_code import check_flag
from razor.evals.ifeval_needs import prepare_ifeval
from razor.evals.isolation import environment, quiet, unchanged
from razor.evals.lm_tasks import check_versions, hub_tasks, loaded, package_tasks
from razor.evals.rows import ROWS_VERSION, check_shots, prepare_rows
from razor.evals.scores import Scores, main_score
from razor.evals.tasks import described, whole
from razor.storage import digest

if TYPE_CHECKING:
    from razor.models import Task

SCORER = 1
"""Counts changes of our own that could move a score; part of every score's key."""


class Benchmark:
    """A fixed set of lm-eval tasks.

    Args:
        tasks: lm-eval names, of tasks and groups; empty for no evaluation.
        limit: score the first `limit` rows of each task (None: all).
        batch_size: rows per forward pass; more rows pay the fake quantization of the weights less
            often.
        num_fewshot: solved examples in the prompt of tasks that are not pinned.
        rows: "package" (rows out of pip packages, see `razor.evals.rows`) or "hub".
        apply_chat_template: put each prompt of tasks that are not pinned into the tokenizer's chat template.
        pinned: what single tasks are asked as, wherever they are listed: `num_fewshot`, `chat_template`, `metric`,
            `version` (see `razor.evals.tasks.Task`).
        run_generated_code: allow tasks that run programs which the model writes (HumanEval).

    Raises:
        RazorError: a value out of range.
    """

    task: ClassVar[Task] = "text"
    """What it asks."""

    def __init__(
        self,
        tasks: Sequence[str],
        limit: int | None = None,
        batch_size: int = 32,
        num_fewshot: int = 0,
        rows: str = "package",
        apply_chat_template: bool = False,
        pinned: Mapping[str, Mapping[str, Any]] | None = None,
        run_generated_code: bool = False,
    ) -> None:
        self.tasks = list(tasks)
        self.limit = limit
        self.batch_size = batch_size
        self.num_fewshot = num_fewshot
        self.rows = rows
        self.apply_chat_template = apply_chat_template
        self.pinned = dict(pinned or {})
        self.run_generated_code = run_generated_code
        self._manager: Any = None
        self._check_values()
        self.described = described(self.tasks, self.pinned, num_fewshot, apply_chat_template)
        if rows == "package":
            check_shots({task.name: task.num_fewshot for task in self.described})

    def _check_values(self) -> None:
        if self.limit is not None and not whole(self.limit, 1):
            raise RazorError(
                f"evals.limit={self.limit} is not a number of rows: "
                "use a whole number from 1, or null for all."
            )
        if not whole(self.batch_size, 1):
            raise RazorError(f"evals.batch_size={self.batch_size}: use a whole number from 1.")
        if not whole(self.num_fewshot, 0):
            raise RazorError(f"evals.num_fewshot={self.num_fewshot}: use a whole number from 0.")
        for key in ("apply_chat_template", "run_generated_code"):
            if not isinstance(getattr(self, key), bool):
                raise RazorError(f"evals.{key}={getattr(self, key)}: use true or false.")
        if self.rows not in ("package", "hub"):
            raise RazorError(f"evals.rows={self.rows} is unknown. Choices: hub, package.")
        if len(set(self.tasks)) < len(self.tasks):
            raise RazorError(f"evals.tasks={self.tasks} names a task twice.")

    def on(self, held_out: Sequence[Samples]) -> Benchmark:
        """Itself: it has rows of its own."""
        return self

    def only(self, task: str) -> Benchmark:
        """The same benchmark with one of its tasks, and what was prepared for all."""
        part = copy.copy(self)
        part.tasks = [task]
        part.described = [one for one in self.described if one.name == task]
        return part

    def prepare(self, tokenizer: Any = None) -> None:
        """Do every download and check now, before anything heavy. Does nothing without tasks.

        Raises:
            RazorError: an unknown task (with the choices), rows that cannot be had, a task in another version than
                the pinned one, generated code that nobody allowed to run, or a chat template asked of a tokenizer
                without one (if a tokenizer is given).
        """
        if not self.tasks:
            return
        check_flag(self.tasks, self.run_generated_code)
        self.check_tokenizer(tokenizer)
        if "ifeval" in self.tasks:
            prepare_ifeval()
        if self.rows == "package":
            folder = prepare_rows(self.tasks)
            if self._manager is None:
                self._manager = package_tasks(folder)
        elif self._manager is None:
            self._manager = hub_tasks(self.tasks)
        check_versions(self._manager, self.described)

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Raise RazorError if a task wants a chat template and the tokenizer (if there is one) has none."""
        chats = [task.name for task in self.described if task.chat_template]
        if not chats or tokenizer is None or tokenizer.chat_template:
            return
        asked = (
            "evals.apply_chat_template=true"
            if self.apply_chat_template
            else f"{', '.join(chats)} asks for it"
        )
        raise RazorError(
            f"{asked}, but the tokenizer has no chat template: use an instruction-tuned model, "
            "evals.apply_chat_template=false, or for a base model evals=table_base."
        )

    def key(self, fingerprint: str) -> str:
        """Hash of everything that shapes a score; `fingerprint` is of model and tokenizer."""
        shape: dict[str, Any] = {
            "tasks": self.tasks,
            "limit": self.limit,
            "num_fewshot": self.num_fewshot,
            "apply_chat_template": self.apply_chat_template,
            "rows": ROWS_VERSION if self.rows == "package" else self.rows,
            "lm_eval": version("lm_eval"),
            "scorer": SCORER,
            "model": fingerprint,
        }
        if pinned := [asdict(task) for task in self.described if task.name in self.pinned]:
            shape["pinned"] = pinned
        if any(task.chat_template for task in self.described):
            shape["thinking"] = False
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
        from razor.evals.shared_context import SharedContextLM

        console = sys.stderr
        with unchanged(model), quiet():
            lm = SharedContextLM(model, copy.deepcopy(tokenizer), self.batch_size, console, description)
            return self.ask(lm)

    def ask(self, lm: Any) -> Scores:
        """Score whatever answers lm-eval's questions; `prepare` comes first, and `unchanged`, `quiet` around it.

        Tasks inside a chat template and those outside are asked one after the other: lm-eval knows one way a time.
        """
        results: dict[str, Any] | None = {}
        with environment("DISABLE_MULTIPROC", "1"):
            from lm_eval import evaluate

            for chat in (False, True):
                tasks = [task for task in self.described if task.chat_template == chat]
                if not tasks:
                    continue
                part = evaluate(
                    lm,
                    loaded(self._manager, tasks),
                    limit=self.limit,
                    apply_chat_template=chat,
                    fewshot_as_multiturn=True,
                    log_samples=False,
                    # Closed-form standard errors need it above 0; two draws for the metrics that
                    # bootstrap (a perplexity we do not report) keep lm-eval quick, DISABLE_MULTIPROC
                    # keeps it from forking.
                    bootstrap_iters=2,
                    confirm_run_unsafe_code=self.run_generated_code,
                )
                # lm-eval gives them to process 0 alone
                results = None if part is None or results is None else results | part["results"]
        found = [] if results is None else [main_score(t.name, results, t.metric) for t in self.described]
        return Scores(processes.gathered(found)[0])

    def score_cached(
        self, model: nn.Module, tokenizer: Any, fingerprint: str, description: str = "lm-eval"
    ) -> Scores:
        """`score`, cached under `key(fingerprint)`; a damaged file is said and made anew."""
        return self.cached(fingerprint, lambda: self.score(model, tokenizer, description))

    def cached(self, fingerprint: str, score: Callable[[], Scores]) -> Scores:
        """What `score` finds, cached under `key(fingerprint)`: a model that is known need not be loaded."""
        if not self.tasks:
            return Scores()
        path = kept_scores.path_of(self.key(fingerprint))
        if (
            kept := processes.gathered(kept_scores.read(path) if processes.rank() == 0 else None)[0]
        ) is not None:
            return kept
        scores = score()
        if processes.rank() == 0:
            kept_scores.write(path, scores)
        return scores
