"""How far the run in a folder has come, and what it leaves when it fails.

A folder belongs to one config: `config.yaml` is written when a run begins, `report.json` when its model is packed
and scored, and last a folder for each export that was asked for. So the same command with the same folder can be
given again at any time: a finished run is left alone, one that was interrupted or failed goes on from its last
checkpoint, and a folder of another config is refused. What went wrong lies in `failure.json`, until another attempt
begins.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from razor.cli.guard import explain
from razor.errors import RazorError
from razor.storage import EXPORTS, FAILURE, MANIFEST, REPORT, atomic_write, disk_full, flat

CONFIG = "config.yaml"
TRACEBACK = "traceback.txt"
NEW, FAILED, BEGUN, FINISHED = "new", "failed", "begun", "finished"
LEFT = (
    CONFIG,
    "recipe.yaml",
    "budget.json",
    "environment.json",
    "start.json",
    "allocation",
    "changes.diff",
    "scores",
    "logs",
)
OF_THE_COMMAND = ("run", "ckpt", "debug")
"""Keys of a config that say nothing about the run itself."""


def standing(folder: Path, config: DictConfig) -> str:
    """NEW, FAILED, BEGUN or FINISHED: what `folder` holds of the run that `config` describes.

    FAILED is a run that came to nothing; whatever its config was, another may take its place.

    Raises:
        RazorError: it holds the run of another config, or a damaged one.
    """
    if not (folder / CONFIG).is_file():
        return NEW
    if (folder / FAILURE).is_file() and not any((folder / name).exists() for name in (REPORT, "checkpoints")):
        return FAILED
    there, here = (
        identity(saved_config(folder)),
        identity(OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))),
    )
    differing = [key for key in sorted(there | here) if there.get(key) != here.get(key)]
    if differing:
        named = ", ".join(
            f"{key} ({there.get(key, 'absent')} there, {here.get(key, 'absent')} here)"
            for key in differing[:4]
        )
        more = f" and {len(differing) - 4} more keys" if len(differing) > 4 else ""
        raise RazorError(
            f"'{folder}' holds a run of another config: {named}{more}. Give another folder, or remove that one."
        )
    wanted = [folder / EXPORTS / name / MANIFEST for name in config.get("export") or {}]
    return FINISHED if all(path.is_file() for path in (folder / REPORT, *wanted)) else BEGUN


def identity(config: Any) -> dict[str, Any]:
    """What makes a run this run: its resolved config as 'group.key' -> value."""
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return flat({str(key): value for key, value in plain.items() if key not in OF_THE_COMMAND})


def saved_config(folder: Path, key: str = "run") -> DictConfig:
    """The config of the run in `folder`, which was given as `key`.

    Raises:
        RazorError: there is none, or it is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise RazorError(f"{key}='{folder}' is no run folder: it holds no {CONFIG} (runs/ lists yours).")
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # of the YAML parser, which the file may be any trouble to
        raise RazorError(f"'{path}' is damaged ({type(error).__name__}).") from error
    if not isinstance(config, DictConfig) or not {"model", "quant", "data", "trainer"} <= set(config):
        raise RazorError(f"'{path}' is damaged: it does not hold the config of a run.")
    return config


@contextmanager
def failures_kept(folder: Path) -> Iterator[None]:
    """Leave `failure.json` in the folder if what is done in here fails.

    Of several processes, the first one does so.
    """
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    try:
        yield
    except (RazorError, HydraException, OmegaConfBaseException) as error:
        note_failure(folder, type(error).__name__, explain(error))
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        reason = str(disk_full(folder)) if full else " ".join(f"{type(error).__name__}: {error}".split())
        note_failure(folder, type(error).__name__, reason, None if full else traceback.format_exc())
        raise


def clear(folder: Path, state: str) -> None:
    """Remove the failure of an earlier attempt, and all else that it left if it came to nothing."""
    for name in (FAILURE, TRACEBACK, *(LEFT if state == FAILED else ())):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def note_failure(folder: Path, error: str, reason: str, trace: str | None = None) -> None:
    """Write `failure.json` (and `traceback.txt`, if there is one), as far as the disk bears it."""
    found = {
        "error": error,
        "reason": reason,
        "traceback": None if trace is None else str(folder / TRACEBACK),
    }
    try:
        if trace is not None:
            with atomic_write(folder / TRACEBACK) as temporary:
                temporary.write_text(trace, encoding="utf-8")
        with atomic_write(folder / FAILURE) as temporary:
            temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    except (OSError, RazorError):
        return  # of a full disk, most likely: the error itself is on its way to the reader
