"""Finding runs in folders, and what their reports say about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from razor.errors import RazorError
from razor.storage import FAILURE, REPORT, flat

NOT_RUNS = ("packed", "checkpoints", "scores", "logs", "wandb")
SCHEMAS = (1,)


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and its report.json as data."""

    folder: Path
    report: dict[str, Any]

    @property
    def name(self) -> str:
        """The folder's last name."""
        return self.folder.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The resolved config as 'group.key' -> value."""
        return flat(self.report.get("config", {}))

    @cached_property
    def seed_keys(self) -> set[str]:
        """Keys that hold a seed."""
        return {key for key in self.settings if key.rpartition(".")[2] == "seed"}

    @property
    def seed(self) -> Any:
        """Of the run."""
        return self.report.get("seed")

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.report.get("model"))

    @property
    def fingerprint(self) -> str:
        """Of the model's weights."""
        return str(self.report.get("model_fingerprint"))

    @property
    def teacher(self) -> str:
        """Who taught: the model itself, or another."""
        return str(self.report.get("teacher", "same"))

    @property
    def quant(self) -> str:
        """Name of the quantization."""
        return str(self.settings.get("quant.name", self.report.get("title")))

    @cached_property
    def losses(self) -> str:
        """Losses with their weights, as in '0.1 task, 2 eakld'; a weight with a schedule is '...'."""
        weights = self.report.get("config", {}).get("distill", {}).get("weights") or {}
        named = [(name, f"{w:g}" if isinstance(w, (int, float)) else "...") for name, w in weights.items()]
        return (
            ", ".join(name if weight == "1" else f"{weight} {name}" for name, weight in named)
            or "as its recipe"
        )

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return int(self.report.get("steps", 0))

    @property
    def tokens(self) -> int | None:
        """Tokens (or images) trained on, over all processes; of older reports, those of the last process."""
        names = ("tokens_trained", "tokens_seen", "images_seen")
        return next((self.report[name] for name in names if name in self.report), None)

    @property
    def text(self) -> dict[str, str] | None:
        """Hashes of the training and held-out rows; None in older reports."""
        return self.report.get("data")

    @property
    def benchmarks_in_training(self) -> tuple[str, ...]:
        """Tasks whose train splits were trained on; empty if none, or if the source of the text does not say."""
        return tuple(self.report.get("benchmarks_in_training") or ())

    @cached_property
    def tasks(self) -> list[str]:
        """Benchmarks that were scored."""
        return list(self.report["rows"][-1]["tasks"])

    @cached_property
    def benchmarks(self) -> tuple[str, ...]:
        """Each with its number of rows, and how it was asked."""
        rows = [f"{name} ({task['rows']} rows)" for name, task in self.report["rows"][-1]["tasks"].items()]
        asked = [key for key in ("num_fewshot", "apply_chat_template") if self.settings.get(f"evals.{key}")]
        return (*rows, *(f"{key}={self.settings[f'evals.{key}']}" for key in asked if rows))

    @property
    def hardware(self) -> str:
        """Device and its name."""
        found = self.report.get("hardware", {})
        return f"{found.get('device')}: {found.get('name')}"

    def number(self, row: str, key: str) -> float | None:
        """A number of a row of the report; `tasks.NAME` is a task's score."""
        found: dict[str, Any] = next((r for r in self.report["rows"] if r["name"] == row), {})
        if key.startswith("tasks."):
            task = found.get("tasks", {}).get(key.removeprefix("tasks."))
            return None if task is None else float(task["value"])
        value = found.get(key)
        return None if value is None else float(value)


def gather(folders: Sequence[Path]) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The finished runs in and below some folders, and the others with what became of them.

    Raises:
        RazorError: a folder that is not there, or holds no run.
    """
    runs: dict[Path, Run] = {}
    others: dict[Path, str] = {}
    seen: set[Path] = set()
    for folder in folders:
        found = run_folders(folder)
        if not found:
            what = "holds no run (a run's folder has a config.yaml)" if folder.is_dir() else "is no folder"
            raise RazorError(f"dirs: '{folder}' {what}; give runs, or the folder of a sweep.")
        for path in found:
            if path.resolve() in seen:  # given twice, by two names
                continue
            seen.add(path.resolve())
            if (path / REPORT).is_file():
                runs[path] = Run(path, read_report(path))
            else:
                others[path] = reason(path)
    return list(runs.values()), list(others.items())


def run_folders(folder: Path) -> list[Path]:
    """Folders of runs, finished or not, in their order; what lies inside a run is not looked at."""
    if any((folder / name).exists() for name in (REPORT, "config.yaml", FAILURE)):
        return [folder]
    if not folder.is_dir():
        return []
    inside = [path for path in sorted(folder.iterdir(), key=in_order) if path.is_dir()]
    return [
        run
        for path in inside
        if path.name not in NOT_RUNS and path.name[0] != "."
        for run in run_folders(path)
    ]


def in_order(path: Path) -> tuple[float, str]:
    """Jobs of a sweep by their number, then by name."""
    number = path.name.partition("_")[0]
    return (float(number) if number.isdigit() else float("inf"), path.name)


def reason(folder: Path) -> str:
    """Why there is no report."""
    if (folder / FAILURE).is_file():
        try:
            return f"failed: {json.loads((folder / FAILURE).read_text(encoding='utf-8'))['reason']}"
        except (ValueError, KeyError, TypeError):
            return f"failed; its {FAILURE} is damaged"
    return "unfinished"


def read_report(folder: Path) -> dict[str, Any]:
    """report.json of a run.

    Raises:
        RazorError: it is not there, damaged, or of another version of Razor.
    """
    path = folder / REPORT
    if not path.is_file():
        raise RazorError(f"'{folder}' holds no {REPORT}: no run finished there.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        report["rows"][-1]["tasks"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RazorError(f"'{path}' is damaged ({type(error).__name__}): leave its folder out.") from error
    if report.get("schema") not in SCHEMAS:
        raise RazorError(
            f"'{path}' has schema {report.get('schema')}, known here: {', '.join(map(str, SCHEMAS))}."
        )
    return report
