"""What a dashboard is told about a run beside its numbers: its config, a few tags, the sweep it belongs to.

All of it is read from the run's folder, where a resumed run finds the same again. So are the names under which
services know the run: W&B and MLflow give or take an id, which is kept in `logs/`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from razor.errors import RazorError
from razor.storage import atomic_write
from razor.train.loggers.csv import LOGS

PUBLISHED = ("report", "all", "none")


@dataclass(frozen=True)
class Described:
    """A run in words.

    Attributes:
        config: resolved; empty if the folder holds none.
        model, quant: their names; "" if unknown.
        losses: names of the losses.
        sweep: name of the sweep's folder; None if the run is no job of one.
    """

    config: dict[str, Any]
    model: str
    quant: str
    losses: tuple[str, ...]
    sweep: str | None

    @classmethod
    def of(cls, folder: Path) -> Described:
        """From `config.yaml` in a run's folder and the folder above it."""
        path = folder / "config.yaml"
        config: dict[str, Any] = (yaml.safe_load(path.read_text()) if path.is_file() else None) or {}
        above = folder.resolve().parent
        swept = above.name.startswith("sweep_") or (above / "multirun.yaml").is_file()
        return cls(
            config,
            str((config.get("model") or {}).get("name") or ""),
            str((config.get("quant") or {}).get("name") or ""),
            tuple((config.get("distill") or {}).get("losses") or ()),
            above.name if swept else None,
        )

    @property
    def tags(self) -> list[str]:
        """Model, quantization and losses: what runs are filtered by."""
        return [tag[:64] for tag in (self.model, self.quant, "+".join(self.losses)) if tag]

    def flat(self) -> dict[str, Any]:
        """The config with dotted names."""
        return dict(_flat(self.config, ""))


def _flat(node: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(value, f"{name}.{key}".lstrip("."))
    elif name:
        yield name, node


def kept_id(folder: Path, service: str, make: Callable[[], str]) -> str:
    """The id under which a service knows the run; made, and written to `logs/<service>.id`, at the first time."""
    path = folder / LOGS / f"{service}.id"
    if path.is_file() and (known := path.read_text().strip()):
        return known
    made = make()
    with atomic_write(path) as temporary:
        temporary.write_text(f"{made}\n")
    return made


def require(logger: str, package: str, install: str) -> None:
    """Raise RazorError, naming the command, if a logger's package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise RazorError(f"logger={logger} needs the package {package}: pip install '{install}'.")


def check_artifacts(logger: str, artifacts: str) -> None:
    """Raise RazorError unless `artifacts` is one of `PUBLISHED`."""
    if artifacts not in PUBLISHED:
        raise RazorError(f"logger.{logger}.artifacts='{artifacts}'. Choices: {', '.join(PUBLISHED)}.")
