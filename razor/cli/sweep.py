"""Sweeps: many jobs from one command, none of which can spoil the others, and a command that can be given again.

Hydra expands the command (`-m quant=w4,w2`), a launcher runs the jobs one after the other, side by side (joblib)
or on a cluster (submitit), and Optuna may choose their values. Whatever the launcher, a job is a process of its
own, and all that is known of it lies in its folder: `report.json` if it finished, `failure.json` if it failed,
neither if it was stopped. So the list at the end is read from the folders, wherever the jobs ran, and resuming is
the same command with the sweep's folder: finished jobs are left alone, the others go on.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from razor.cli.guard import BAD_INPUT, INTERRUPTED, explain, guarded
from razor.cli.own_process import run_apart
from razor.cli.standing import FINISHED, clear, note_failure, standing
from razor.errors import RazorError, did_you_mean
from razor.storage import FAILURE, REPORT

OBJECTIVES = {"kl": "minimize", "perplexity": "minimize", "average": "maximize"}
"""What a sweeper may optimize: held-out KL and perplexity of the trained student, average of its benchmarks."""
FOR_OPTUNA = {"sampler.seed": 0, "max_failure_rate": 1.0}
"""What suits a sweep of runs, unless the command says otherwise: the same command proposes the same values, which
is how it is resumed, and a failed job does not end it."""
PLUGINS = {
    "hydra/launcher=joblib": "hydra_joblib_launcher",
    "hydra/launcher=submitit_local": "hydra_submitit_launcher",
    "hydra/launcher=submitit_slurm": "hydra_submitit_launcher",
    "hydra/sweeper=optuna": "hydra_optuna_sweeper",
}
OUTPUT, OPTUNA = "output.log", "optuna"


class Sweep(Callback):
    """What goes on around the jobs of a sweep; `hydra.callbacks.sweep` in conf/train.yaml.

    Args:
        objective: what a job returns to a sweeper such as Optuna; one of OBJECTIVES.
        own_process: whether each job is a process of its own.

    Raises:
        RazorError: an objective that is none.
    """

    current: ClassVar[Sweep | None] = None

    def __init__(self, objective: str = "kl", own_process: bool = True) -> None:
        if objective not in OBJECTIVES:
            raise RazorError(f"objective='{objective}'.{did_you_mean(str(objective), OBJECTIVES)}")
        self.objective, self.own_process = objective, own_process
        self.folder = Path()
        self.finished_before: set[Path] = set()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the folder, and which of its jobs have nothing left to do."""
        self.folder = Path(config.hydra.sweep.dir)
        self.finished_before = {folder for folder in jobs_in(self.folder) if (folder / REPORT).is_file()}
        if config.hydra.runtime.choices["hydra/sweeper"] == OPTUNA:
            given = {word.lstrip("+").partition("=")[0] for word in config.hydra.overrides.hydra}
            for key, value in (FOR_OPTUNA | {"direction": OBJECTIVES[self.objective]}).items():
                if f"hydra.sweeper.{key}" not in given:
                    OmegaConf.update(config, f"hydra.sweeper.{key}", value)
        Sweep.current = self

    @classmethod
    def follow(cls, main: Callable[[], Any]) -> int:
        """Run Hydra's main function; after a sweep say what became of its jobs, and return the exit code."""
        cls.current, interrupted = None, False
        try:
            main()
        except (KeyboardInterrupt, SystemExit) as stop:
            interrupted = isinstance(stop, KeyboardInterrupt) or stop.code == INTERRUPTED
            if cls.current is None or not interrupted:
                raise
        except Exception as error:  # of a launcher or sweeper: that of a job stays in its folder
            if cls.current is None or not jobs_in(cls.current.folder):
                raise
            print(f"razor: the sweep ended early: {' '.join(str(error).split())}", file=sys.stderr)
            return max(BAD_INPUT, cls.current.tell(interrupted))
        return 0 if cls.current is None else cls.current.tell(interrupted)

    def tell(self, interrupted: bool) -> int:
        """Print the list of jobs, and how to go on; returns the exit code."""
        states: dict[str, list[str]] = {}
        for folder in jobs_in(self.folder):
            state, note = self._state(folder)
            states.setdefault(state, []).append(f"{folder}{note}")
        print(f"\nsweep    {self.folder}: {sum(map(len, states.values()))} jobs")
        for state in ("finished", "skipped", "stopped", "failed"):
            for line in states.get(state, []):
                print(f"{state:8s} {line}")
        if interrupted:
            print("Jobs that are not listed had not begun.")
        if interrupted or states.get("failed") or states.get("stopped"):
            print(f"resume   {self.command()}")
        print(f"compare  razor compare dirs=[{self.folder}]", flush=True)
        return INTERRUPTED if interrupted else BAD_INPUT if {"failed", "stopped"} & set(states) else 0

    def _state(self, folder: Path) -> tuple[str, str]:
        if (folder / FAILURE).is_file():
            reason = str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["reason"])
            return "failed", f": {reason if len(reason) < 300 else reason[:300] + ' ...'}"
        if not (folder / REPORT).is_file():
            return "stopped", ""
        return ("skipped", " (finished before)") if folder in self.finished_before else ("finished", "")

    def command(self) -> str:
        """The command that goes on with this sweep."""
        words = [word for word in sys.argv[1:] if not word.startswith("hydra.sweep.dir=")]
        return shlex.join(["python", "train.py", *words, f"hydra.sweep.dir={self.folder}"])


def jobs_in(folder: Path) -> list[Path]:
    """The folders of a sweep's jobs, in the order of their numbers."""
    found = [path.parent for path in folder.rglob(".hydra") if path.is_dir()]
    return sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in split(path)])


def split(path: Path) -> list[str]:
    """A path in pieces, so that numbers in it can be ordered as such: text at even places, digits at odd ones."""
    return re.split(r"(\d+)", str(path))


def sweep_job(config: DictConfig, folder: Path) -> float | None:
    """One job of a sweep, whichever process this is; returns its objective, None if it failed.

    Raises:
        SystemExit: it was interrupted by Ctrl-C, which ends the sweep.
    """
    hydra = HydraConfig.get()
    options = hydra.callbacks["sweep"]
    try:
        if hydra.runtime.choices["hydra/sweeper"] == OPTUNA and options.objective == "average":
            check_tasks(config)
        if standing(folder, config) == FINISHED:  # before a process is started for nothing
            clear(folder, FINISHED)
            print(f"'{folder}' holds this job, finished.", flush=True)
            code = 0
        elif options.own_process:
            code = apart(config, folder, alone=hydra.runtime.choices["hydra/launcher"] == "basic")
        else:
            code = here(config, folder)
    except (RazorError, OmegaConfBaseException) as error:  # another config's folder, or one without a value
        note_failure(folder, type(error).__name__, explain(error))
        return None
    if code == INTERRUPTED:
        sys.exit(INTERRUPTED)
    return objective_of(folder, options.objective) if code == 0 else None


def here(config: DictConfig, folder: Path) -> int:
    """Run a job in this process."""
    from razor.cli.job import attempt

    try:
        return guarded(lambda: attempt(config, folder), [])
    except Exception:  # a bug in one job; the others go on
        traceback.print_exc()
        return 1


def apart(config: DictConfig, folder: Path, alone: bool) -> int:
    """Run a job in a new process; if others run beside it, what it prints goes to a file in its folder."""
    code = run_apart(config, folder, None if alone else folder / OUTPUT)
    if code == -signal.SIGINT:
        return INTERRUPTED
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        note_failure(
            folder, name, f"The process was killed by {name}{hint}; it goes on when the sweep is resumed."
        )
    elif code not in (0, INTERRUPTED) and not (folder / FAILURE).is_file():
        note_failure(folder, "SystemExit", f"The process ended with exit code {code}.")
    return code


def objective_of(folder: Path, objective: str) -> float | None:
    """A number of the trained student in the report of `folder`; None if it was not measured."""
    rows = json.loads((folder / REPORT).read_text(encoding="utf-8"))["rows"]
    value = rows[-1][objective]
    return None if value is None else float(value)


def check_tasks(config: DictConfig) -> None:
    """Raise RazorError if a job has no benchmark whose average could be optimized."""
    if not config.evals.tasks:
        raise RazorError(
            "hydra.callbacks.sweep.objective=average needs benchmarks: evals=quick, not evals=none."
        )


def check_plugins(words: Sequence[str]) -> None:
    """Raise RazorError if a launcher or sweeper is asked for that is not installed."""
    for word in words:
        package = PLUGINS.get(word.lstrip("+"))
        if package is not None and importlib.util.find_spec(f"hydra_plugins.{package}") is None:
            raise RazorError(f"{word} needs a plugin of Hydra: pip install 'razor-qad[sweeps]'.")
