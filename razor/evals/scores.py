"""What a benchmark run leaves: one number per task, and their mean.

The main metric of a multiple-choice task is lm-eval's `acc_norm` (log-likelihood per byte of the
answer, so that long answers are not at a disadvantage) where it gives one, else `acc`; of IFEval the
share of prompts all of whose instructions are followed to the letter, of programs `pass@1`, of answers
that are written out `exact_match` by the task's first filter. All values are percent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from razor.errors import RazorError

CALIBRATION = "ece"
"""Expected calibration error: less is better, so it is shown and belongs to no average."""

MAIN_METRICS = ("acc_norm", "acc", "exact_match", "prompt_level_strict_acc", "pass@1")


@dataclass
class Score:
    """One task's main metric.

    Attributes:
        task, metric: lm-eval's names; of images see `razor.evals.classification`.
        value: percent.
        stderr: standard error of `value` in percent points; None for a single row, and where there is no formula.
        rows: number of rows scored.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    rows: int


@dataclass
class Scores:
    """The scores of one model."""

    tasks: list[Score] = field(default_factory=list)

    @property
    def average(self) -> float | None:
        """Plain mean of the tasks' values in percent; None without tasks."""
        values = [task.value for task in self.tasks if task.metric != CALIBRATION]
        return sum(values) / len(values) if values else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form: {"tasks": [{task, metric, value, stderr, rows}], "average"}."""
        return {"tasks": [asdict(task) for task in self.tasks], "average": self.average}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Scores:
        """Inverse of `to_dict`."""
        return cls([Score(**task) for task in data["tasks"]])


def main_score(task: str, results: Mapping[str, Any], metric: str | None = None) -> Score:
    """The main metric of a task or group in lm-eval's results, whose keys read "metric,filter".

    Args:
        task: its name.
        results: of all tasks.
        metric: which one, with or without its filter; None: the first of MAIN_METRICS that there is.

    Raises:
        RazorError: the task does not report it.
    """
    found = results.get(task, {})
    for wanted in MAIN_METRICS if metric is None else (metric,):
        for key, value in found.items():
            name, _, chosen = key.partition(",")
            if wanted in (name, key):
                error = found.get(f"{name}_stderr,{chosen}")
                stderr = 100 * float(error) if isinstance(error, (int, float)) else None
                return Score(task, wanted, 100 * float(value), stderr, int(found["sample_len"]))
    if metric is not None:
        known = ", ".join(key for key in found if "," in key)
        raise RazorError(f"evals.pinned.{task}.metric={metric}: the task reports {known}.")
    raise RazorError(
        f"Task '{task}' reports none of {', '.join(MAIN_METRICS)} (but {', '.join(found)}): "
        "leave it out of evals.tasks, or name its sub-tasks."
    )
