"""`razor evaluate`: benchmark scores of finished models, whatever form they have, in one table."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from razor.cli.config import build, composed
from razor.errors import RazorError

if TYPE_CHECKING:
    from razor.evals.harness import Benchmark
    from razor.evals.score_table import ScoreTable
    from razor.evals.targets import Target

PACKAGES = ("lm_eval", "transformers", "torch", "xllamacpp", "razor-qad")


def evaluate(overrides: Sequence[str]) -> int:
    """`razor evaluate`: benchmark scores of models: runs, packed folders, GGUF files, hub models."""
    names, words = leading(overrides)
    config = composed("evaluate", words if names is None else ["target=given", *words])
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    with redirect_stdout(sys.stderr if config.json else sys.stdout):
        found = scored(config, names if names is not None else names_of(config.target))
        written = [] if config.out is None else found.save(Path(str(config.out)))
    if config.json:
        print(json.dumps(found.to_dict() | {"written": [str(path) for path in written]}))
    else:
        notes = "\n".join(f"- {note}" for note in found.notes)
        print("\n".join([found.table(), "", notes, *(f"wrote {path}" for path in written)]))
    return 0


def leading(words: Sequence[str]) -> tuple[list[str] | None, list[str]]:
    """Targets that stand in front, as they were typed, and the overrides; None for targets where none stands there.

    Raises:
        RazorError: targets in front, and `target=` too.
    """
    names = []
    for word in words:
        if "=" in word or word.startswith("-"):
            break
        names.append(word)
    rest = list(words[len(names) :])
    if names and any(word.partition("=")[0] == "target" for word in rest):
        raise RazorError(f"target= and '{names[0]}' in front of it: give targets in one way.")
    return names or None, rest


def names_of(target: Any) -> list[str]:
    """`target=` as names: one, or a list.

    Raises:
        RazorError: it is something else, or empty.
    """
    given = OmegaConf.to_container(target) if OmegaConf.is_config(target) else [target]
    if not isinstance(given, list) or not given or any(isinstance(name, (list, dict)) for name in given):
        raise RazorError(f"target={target}: give a model, or several, target=[runs/a,runs/b].")
    names = ["" if name is None else str(name) for name in given]
    if "" in names:
        raise RazorError("target= is empty: give a run, a packed folder, a GGUF file, a folder or a hub id.")
    return names


def scored(config: DictConfig, names: Sequence[str]) -> ScoreTable:
    """Look at every target and at all that the benchmark needs, and only then score one after the other."""
    from razor.cli.targets import device_of, target_of
    from razor.evals.score_table import ScoreTable

    if len(set(names)) < len(names):
        raise RazorError(f"target={list(names)} names a model twice.")
    benchmark = build(config.evals)
    if not benchmark.tasks:
        raise RazorError("evals.tasks is empty, so there is nothing to score: evals=quick, offline, table.")
    device_of(config)
    targets = [target_of(name, config) for name in names]
    for target in targets:
        try:
            benchmark.prepare(target.tokenizer)
        except RazorError as error:
            raise RazorError(f"{target.name}: {error}" if len(targets) > 1 else str(error)) from error
    rows = []
    try:
        for target in targets:
            rows.append((target, target.score(benchmark)))
    except KeyboardInterrupt:
        print("Stopped. Every finished task is kept; the same command goes on.", file=sys.stderr)
        raise
    return ScoreTable(rows, facts(benchmark), notes(benchmark, targets))


def facts(benchmark: Benchmark) -> dict[str, Any]:
    """What shaped the scores, for whoever wants to repeat them."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    asked = {"tasks": [asdict(task) for task in benchmark.described], "limit": benchmark.limit}
    return {
        "benchmark": asked | {"rows": benchmark.rows, "batch_size": benchmark.batch_size},
        "versions": found | {"python": platform.python_version()},
    }


def notes(benchmark: Benchmark, targets: Sequence[Target]) -> list[str]:
    """Sentences under the table."""
    rows = "all rows" if benchmark.limit is None else f"first {benchmark.limit} rows of each task"
    found = [
        f"lm-eval {version('lm_eval')}, {rows}; percent ± standard error, average: plain mean of the tasks."
    ]
    shots = [f"{task.name} {task.num_fewshot}" for task in benchmark.described if task.num_fewshot]
    chats = [task.name for task in benchmark.described if task.chat_template]
    found += [f"solved examples in the prompt: {', '.join(shots)}."] if shots else []
    found += [f"in the chat template: {', '.join(chats)}."] if chats else []
    if any(target.kind == "gguf" for target in targets):
        found.append("GGUF: run by llama.cpp; ratio by bytes alone, A8 and KV8 in blocks of its own.")
    return found
