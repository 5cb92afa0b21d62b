"""What a task is asked as: with how many examples, in the chat template or not, by which metric, in which version.

`evals.tasks` names tasks. What else belongs to one is either the same for all (`evals.num_fewshot`,
`evals.apply_chat_template`) or stands beside the list, in `evals.pinned`, and then a task keeps it however the list
is cut. A pinned version is lm-eval's own number, raised whenever prompt or metric of a task change: where it is
another, scores are not those of the table, and nothing is scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from razor.errors import RazorError, did_you_mean


@dataclass(frozen=True)
class Task:
    """One task of a benchmark.

    Attributes:
        name: lm-eval's, of a task or a group.
        num_fewshot: solved examples in the prompt.
        chat_template: put the prompt into the tokenizer's chat template.
        metric: what counts, as lm-eval calls it: `acc_norm`, or with its filter `exact_match,strict-match`; None:
            the usual one (see `razor.evals.scores`).
        version: what lm-eval's version of the task has to be, of a group "its own/its tasks'"; None: any.
    """

    name: str
    num_fewshot: int = 0
    chat_template: bool = False
    metric: str | None = None
    version: str | None = None


KEYS = tuple(field.name for field in fields(Task) if field.name != "name")


def described(
    names: Sequence[str], pinned: Mapping[str, Mapping[str, Any]], num_fewshot: int, chat_template: bool
) -> list[Task]:
    """The tasks of a list: each as it is pinned, else as all are.

    Raises:
        RazorError: an unknown key, or a value of another kind.
    """
    return [
        Task(name, num_fewshot, chat_template) if name not in pinned else _pinned(name, pinned[name])
        for name in names
    ]


def _pinned(name: str, given: Mapping[str, Any]) -> Task:
    place = f"evals.pinned.{name}"
    for key, value in given.items():
        if key not in KEYS:
            raise RazorError(f"There is no {place}.{key}.{did_you_mean(str(key), KEYS)}")
        if not _fits(key, value):
            raise RazorError(f"{place}.{key}={value}: {EXPECTED[key]}.")
    version = given.get("version")
    return Task(name, **dict(given) | {"version": None if version is None else str(version)})


EXPECTED = {
    "num_fewshot": "use a whole number from 0",
    "chat_template": "use true or false",
    "metric": "use a name such as acc_norm, or null",
    "version": "use lm-eval's number, such as 1.0, or null",
}


def _fits(key: str, value: Any) -> bool:
    if key == "num_fewshot":
        return whole(value, 0)
    if key == "chat_template":
        return isinstance(value, bool)
    return value is None or isinstance(value, str) or (key == "version" and isinstance(value, (int, float)))


def whole(value: Any, least: int) -> bool:
    """Whether a value is a whole number, and no smaller."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
