"""What a person gets to read when something is wrong: one line, and exit code 2."""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Callable, Sequence

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from razor.cli.config import conf_dir
from razor.errors import RazorError, did_you_mean
from razor.storage import disk_full

BAD_INPUT = 2
INTERRUPTED = 130


def guarded(job: Callable[[], int | None], argv: Sequence[str]) -> int:
    """Run a command; return its exit code, with bad input told in one line."""
    try:
        return job() or 0
    except (RazorError, HydraException, OmegaConfBaseException) as error:
        if any(argument.lower() == "debug=true" for argument in argv):
            raise
        print(f"razor: {explain(error)}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.errno != errno.ENOSPC or any(argument.lower() == "debug=true" for argument in argv):
            raise
        where = error.filename or "the run's folder"
        print(f"razor: {disk_full(where)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("razor: interrupted.", file=sys.stderr)
        return INTERRUPTED


def explain(error: BaseException) -> str:
    """One line for an error: our own words where we have some, else Hydra's, with the nearest name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RazorError):
            building = re.search(r"Error in call to target .*full_key: (\S+)", str(error), re.S)
            place = building.group(1) if building else ""
            return str(cause) if place in str(cause) else f"{place}: {cause}"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if option := re.search(r"Could not find '(\S+)/(\S+)'", text):
        group, value = option.groups()
        choices = [path.stem for path in (conf_dir() / group).glob("*.yaml")]
        return f"There is no {group}={value}.{did_you_mean(value, choices)} They lie in conf/{group}/."
    if key := re.search(r"Could not override '([\w.]+)'", text):
        _, dot, name = key.group(1).rpartition(".")
        if not dot and (conf_dir() / name).is_dir():
            return (
                f"'{name}' is a group of conf/ that nothing in this config reads (score=: quant=auto_* does)."
            )
        files = conf_dir().rglob("*.yaml") if dot else conf_dir().glob("*.yaml")
        words = {w for path in files for w in re.findall(r"^ *(\w+):", path.read_text(), re.M)}
        words |= {path.name for path in conf_dir().iterdir() if path.is_dir()}
        near = difflib.get_close_matches(name, words, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"There is no key '{key.group(1)}'.{hint} The files in conf/ list the keys of every group."
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        name = missing.group(1).replace("model.source.", "model.")
        return f"{name} has no default: give it as {name}=... ."
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    reason = "" if inner is error else f" <- {type(inner).__name__}: {' '.join(str(inner).split())}"
    return f"{text}{reason} (see conf/)"
