"""Where and with what a run was made: hardware, versions, state of the code, hashes of model and text.

`environment.json` is written as a run begins, so that one that never ends can be told from others too; the report
repeats the short part. If the code had changes that no commit holds, they lie beside it in `changes.diff`. A run
that is resumed somewhere else, or with other versions, says so under `resumed`: its numbers are of both.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.storage import atomic_write, flat

if TYPE_CHECKING:
    from razor.data.corpus import Corpus
    from razor.models import ModelSource

PACKAGES = ("torch", "transformers", "lightning", "hydra-core", "lm_eval", "datasets", "razor-qad")
ENVIRONMENT, CHANGES = "environment.json", "changes.diff"
COMPARED = ("hardware", "git", "packages")


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware, package versions and git commit."""
    return {"hardware": _hardware(device), "versions": _versions(), "git": git_state()}


def record_environment(folder: Path, device: torch.device) -> None:
    """Write `environment.json` (and `changes.diff`) as a run begins; note what differs as it is resumed."""
    now = environment(device) | {"packages": packages()}
    path = folder / ENVIRONMENT
    if not path.is_file():
        _write(path, {"started": _now()} | now)
        if diff := _changes():
            with atomic_write(folder / CHANGES) as temporary:
                temporary.write_text(diff, encoding="utf-8", errors="surrogateescape")
        return
    then = read_environment(folder)
    if changed := differences(then, now):
        _write(path, then | {"resumed": [*then.get("resumed", []), {"time": _now(), "changed": changed}]})


def record_hashes(folder: Path, model: ModelSource, corpus: Corpus) -> dict[str, str]:
    """Put the hashes of model and text into `environment.json`; returns those of the text.

    Text that is not what it was when the run began is noted under `resumed`.
    """
    kept = read_environment(folder) if (folder / ENVIRONMENT).is_file() else {}
    text, before = text_hashes(corpus), kept.get("data", {})
    changed = {f"text.{name}": [old, text[name]] for name, old in before.items() if old != text[name]}
    if changed:
        print(
            f"The text is not what it was when this run began ({', '.join(changed)}), so it does not go on exactly."
        )
        kept["resumed"] = [*kept.get("resumed", []), {"time": _now(), "changed": changed}]
    if changed or not before:
        _write(folder / ENVIRONMENT, kept | {"model_fingerprint": model.fingerprint(), "data": text})
    return text


def text_hashes(corpus: Corpus) -> dict[str, str]:
    """Of the rows that are trained on and of those held out: tokens, labels, document borders; pixels, classes."""
    return {"train": corpus.train.digest(), "held_out": corpus.held_out.digest()}


def read_environment(folder: Path) -> dict[str, Any]:
    """What `environment.json` holds.

    Raises:
        RazorError: it is damaged.
    """
    path = folder / ENVIRONMENT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RazorError(f"'{path}' is damaged ({type(error).__name__}): remove it.") from error
    assert isinstance(found, dict)
    return found


def differences(then: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """What of hardware, code and packages is not as it was: 'packages.torch' -> [then, now]."""
    old, new = (flat({key: found.get(key) for key in COMPARED}) for found in (then, now))
    return {key: [old.get(key), new.get(key)] for key in sorted(old | new) if old.get(key) != new.get(key)}


@functools.cache  # reading some hundred files takes half a second, and a process keeps what it imported
def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        told = distribution.metadata
        if told["Name"]:  # leftovers of a removed package have none
            found.setdefault(told["Name"].lower().replace("_", "-"), told["Version"])
    return dict(sorted(found.items()))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _write(path: Path, data: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _hardware(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type,
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(terse=True),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of Razor's own checkout and whether its files were changed; None outside of one."""
    commit = _git("rev-parse", "HEAD")
    if commit is None or _git("rev-parse", "--show-toplevel") != str(_root()):
        return None  # installed into an environment that lies in somebody's repository
    return {"commit": commit, "changed": bool(_git("status", "--porcelain"))}


def _changes() -> str | None:
    """The changes that no commit holds; files that git does not know are named at the end."""
    state = git_state()
    if state is None or not state["changed"]:
        return None
    unknown = (_git("ls-files", "--others", "--exclude-standard") or "").splitlines()
    listed = "".join(f"# not in git: {name}\n" for name in unknown)
    return f"{_git('diff', '--binary', '--no-color', '--no-ext-diff', 'HEAD') or ''}{listed}"


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def _git(*words: str) -> str | None:
    command = ["git", "-C", str(_root()), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, errors="surrogateescape")
    except (OSError, subprocess.CalledProcessError):
        return None
    return (
        done.stdout if words[0] == "diff" else done.stdout.strip()
    )  # a diff may end in a blank line of its own
