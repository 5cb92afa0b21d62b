"""lm-eval's side of a benchmark: its index of tasks, what it loads, and in which version.

A group (MMLU's 57 subjects, ETHICS' five parts) has one score: lm-eval's mean over its tasks, weighted by their
rows, with the standard error that belongs to it. lm-eval has a tag for ETHICS and no group, so its mean is not
defined there; ours lies in `lm_eval_groups/`, beside the table itself as a group for lm-eval's own command.
"""

from __future__ import annotations

import difflib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from razor.errors import RazorError
from razor.evals.generated_code import own_code_eval, use_own
from razor.evals.isolation import quiet
from razor.evals.rows_sources import CHOICES
from razor.evals.tasks import Task

SEED = 1234
"""lm-eval's default, which picks and orders few-shot examples."""
GROUPS_FOLDER = Path(__file__).parent / "lm_eval_groups"


def package_tasks(folder: Path) -> Any:
    """An index of what `prepare_rows` wrote; that of all of lm-eval's own takes ten seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(folder), include_defaults=False)


def hub_tasks(tasks: Sequence[str]) -> Any:
    """lm-eval's own index and our groups, after loading (so downloading) every task once.

    Raises:
        RazorError: lm-eval has no such task, or its rows cannot be had.
    """
    from lm_eval.tasks import TaskManager

    with quiet():  # about our group in the place of a tag
        manager = TaskManager(include_path=str(GROUPS_FOLDER))
    names = [*manager.all_subtasks, *manager.all_groups]
    for task in tasks:
        if task not in names:
            near = difflib.get_close_matches(task, names, n=5) or CHOICES
            raise RazorError(
                f"lm-eval has no task or group '{task}'. Nearest: {', '.join(near)}. "
                "All of them: lm-eval ls tasks."
            )
    for task in tasks:
        try:
            with own_code_eval():
                manager.load([task])
        except Exception as error:  # whatever a hub, a proxy or a data set's script may raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RazorError(
                f"evals.rows=hub: the rows of {task} could not be loaded ({reason}). Without a hub use "
                f"evals=offline, or evals.rows=package with evals.tasks among: {', '.join(CHOICES)}."
            ) from error
    return manager


def check_versions(manager: Any, tasks: Sequence[Task]) -> None:
    """Raise RazorError for the first task whose version in the installed lm-eval is not the pinned one."""
    for task in tasks:
        found = version_of(manager.task_index, task.name)
        if task.version is not None and found != task.version:
            from importlib.metadata import version

            raise RazorError(
                f"Task '{task.name}' is version {found} in lm-eval {version('lm_eval')}, and pinned to "
                f"{task.version}: its scores would not be those of the table. Install the lm-eval of "
                f"constraints.txt, or set evals.pinned.{task.name}.version=null to score it all the same."
            )


def version_of(index: Mapping[str, Any], name: str) -> str:
    """lm-eval's version of a task; of a group "its own/its tasks'", and '?' where there is none."""
    entry = index.get(name)
    if entry is None:
        return "?"
    own = str(((entry.cfg or {}).get("metadata") or {}).get("version", "?"))
    if entry.kind.name != "GROUP":
        return own
    return "/".join([own, *sorted({version_of(index, leaf) for leaf in leaves_of(index, name)})])


def leaves_of(index: Mapping[str, Any], name: str) -> list[str]:
    """The tasks below a task, a group or a tag of an index."""
    entry = index.get(name)
    if entry is None or entry.kind.name not in ("GROUP", "TAG"):
        return [name]
    below = sorted(entry.tags) if entry.kind.name == "TAG" else (entry.cfg or {}).get("task", [])
    names = [item if isinstance(item, str) else item.get("task", item.get("group")) for item in below]
    return [leaf for item in names for leaf in leaves_of(index, str(item))]


def loaded(manager: Any, tasks: Sequence[Task]) -> dict[str, Any]:
    """Fresh task objects, set up as `lm_eval.simple_evaluate` sets them up.

    That function does this and calls `lm_eval.evaluate`, as we do; around it, it spends two seconds on a report of
    the environment and lets git complain outside of a repository.

    Raises:
        RazorError: two names of the list hold the same task.
    """
    random.seed(0)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for task in tasks:
        with own_code_eval() as code:
            part = manager.load([task.name])
        if twice := set(part["tasks"]) & set(found["tasks"]):
            raise RazorError(f"evals.tasks: '{min(twice)}' is asked for twice, by itself and in a group.")
        for name, leaf in part["tasks"].items():
            if leaf.get_config("num_fewshot") != 0:  # a task that insists on none keeps none
                leaf.set_config(key="num_fewshot", value=task.num_fewshot)
            leaf.set_fewshot_seed(seed=SEED)
            if getattr(leaf, "UNSAFE_CODE", False):
                use_own(leaf, code)
            found["tasks"][name] = leaf
        found["groups"] |= part["groups"]
        found["group_map"] |= part["group_map"]
    return found
