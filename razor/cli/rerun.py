"""`razor rerun`: repeat a run from what it stored, and say whether the numbers match."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from razor.cli.config import composed
from razor.cli.standing import saved_config
from razor.errors import RazorError

if TYPE_CHECKING:
    from razor.evals.compare_numbers import Match

DIFFERENT = 1
STEERING = ("config.yaml", "recipe.yaml", "budget.json")
"""What steers a run besides the code: its config, its recipe even if the file it came from has changed, and minutes
as the number of steps that they became."""
SHOWN = 20


def rerun(overrides: Sequence[str]) -> int:
    """`razor rerun`: repeat a run from what it stored, and say whether the numbers match (exit code 1 if not)."""
    from razor.evals.compare_numbers import match
    from razor.evals.compare_runs import read_report

    config = composed("rerun", overrides)
    then = Path(config.run)
    saved, report = saved_config(then), read_report(then)
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    now = then.with_name(f"{then.resolve().name}_rerun") if config.out is None else Path(config.out)
    with redirect_stdout(sys.stderr) if config.json else nullcontext():
        changed = what_changed(then, saved, report)
        tell_changes(changed)
        code = repeat(saved, then, now)
    if code:
        return code
    found = match(then, now)
    if config.json:
        print(json.dumps(as_data(then, now, changed, found)))
    else:
        print(verdict(found, now))
    return 0 if found.equal else DIFFERENT


def repeat(config: DictConfig, then: Path, now: Path) -> int:
    """Run the config of `then` in the folder `now`, or go on with it there; returns the exit code.

    Raises:
        RazorError: `now` holds something else.
    """
    from razor.cli.job import attempt

    if now.exists() and any(now.iterdir()) and not (now / STEERING[0]).is_file():
        raise RazorError(f"'{now}' is not empty: give another place with out=FOLDER.")
    if now.resolve() == then.resolve():
        raise RazorError(f"out='{now}' is the run itself: give another place.")
    now.mkdir(parents=True, exist_ok=True)
    for name in STEERING:
        if (then / name).is_file() and not (now / name).is_file():
            shutil.copyfile(then / name, now / name)
    return attempt(config, now)


def what_changed(folder: Path, config: DictConfig, report: dict[str, Any]) -> dict[str, list[Any]]:
    """What is not as it was when the run was made: 'packages.torch' -> [then, now]."""
    from razor.cli.teacher import teaching
    from razor.train.facts import (
        ENVIRONMENT,
        differences,
        environment,
        packages,
        read_environment,
        text_hashes,
    )

    taught = teaching(config)
    now: dict[str, Any] = environment(taught.settings.device)
    if (folder / ENVIRONMENT).is_file():
        then, now = read_environment(folder), now | {"packages": packages()}
    else:  # of a run before there was such a file
        then = report | {"packages": report.get("versions")}
        now["packages"] = now["versions"]
    changed = differences(then, now)
    taught.check()
    if report.get("model_fingerprint") != taught.model.fingerprint():
        changed["model"] = [report.get("model_fingerprint"), taught.model.fingerprint()]
    text = text_hashes(taught.corpus())
    for name, old in (report.get("data") or {}).items():
        if old != text[name]:
            changed[f"text.{name}"] = [old, text[name]]
    return changed


def tell_changes(changed: dict[str, list[Any]]) -> None:
    """Print them."""
    if not changed:
        print("As it was: code, packages, hardware, model and text.", flush=True)
        return
    print("Not as it was:")
    for key, (old, new) in changed.items():
        print(f"  {key}: {old} then, {new} now", flush=True)


def verdict(found: Match, folder: Path) -> str:
    """The result for people."""
    compared = ", ".join(f"{count} {name}" for name, count in found.compared.items())
    if found.equal:
        return f"\nEqual to the last digit: {compared}.\nrerun    {folder}"
    worst = max(found.differences, key=lambda difference: (difference.size < float("inf"), difference.size))
    lines = [f"\nNot equal: {len(found.differences)} of {compared} differ, most in {worst.name}", ""]
    lines += ["| what | then | now | relative |", "|---|---|---|---|"]
    for difference in found.differences[:SHOWN]:
        size = f"{difference.size:.2g}" if difference.size < float("inf") else "-"
        lines.append(f"| {difference.name} | {difference.then} | {difference.now} | {size} |")
    more = len(found.differences) - SHOWN
    return "\n".join(
        [
            *lines,
            *([f"... and {more} more (json=true shows all)"] if more > 0 else []),
            f"\nrerun    {folder}",
        ]
    )


def as_data(then: Path, now: Path, changed: dict[str, list[Any]], found: Match) -> dict[str, Any]:
    """The result for programs."""
    return {
        "run": str(then),
        "rerun": str(now),
        "changed": changed,
        "equal": found.equal,
        "compared": found.compared,
        "differences": [{"name": d.name, "then": d.then, "now": d.now} for d in found.differences],
    }
