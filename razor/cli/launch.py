"""Several processes for one run, started by torchrun's own agent.

`trainer=ddp trainer.devices=4` alone is enough: the config is composed and checked once, written into the run
folder, and four workers continue "the run in that folder". They need neither Hydra nor the words of a command
line, so a job of a sweep can have processes too. On several machines torchrun has to be called by whoever owns
them (a person, SLURM); then its process 0 composes and names the folder to the others.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
import warnings
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from razor import processes
from razor.cli.guard import INTERRUPTED
from razor.errors import RazorError

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from razor.train.job import Job

LAST_STEP = "600"
"""Seconds that workers have, once asked to stop, for the step in hand and a checkpoint."""
FOLDER = "razor/folder"
WHERE = ("accelerator", "strategy", "devices", "nodes", "shard_teacher")
"""Keys of the trainer that may change when a run continues: they say where it runs, not what it is."""


def launch(job: Job) -> int:
    """Check a job, then run it in the processes that its trainer asks for; returns the exit code.

    Raises:
        RazorError: bad input, or several machines.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = _checked(job)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", LAST_STEP)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # workers speak for themselves
    if job.settings.device.type == "cpu":
        threads = max(1, (os.cpu_count() or 1) // count)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # or they fight for the cores
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    where = [f"trainer.{key}={_said(getattr(job.settings, key))}" for key in WHERE]
    words = ["-m", "razor.cli.worker", str(os.getpid()), f"run={job.folder}", "ckpt=last", *where]
    print(f"Starting {count} processes ({job.settings.strategy}).", flush=True)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        elastic_launch(agent, sys.executable)(*words)
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return INTERRUPTED if code == -signal.SIGINT else abs(code)
    except SignalException:
        return INTERRUPTED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _checked(job: Job) -> int:
    """The number of processes to start; one line for bad input instead of one from each of them."""
    from razor.train import budget
    from razor.train.job import check

    count = job.settings.here
    if job.settings.nodes > 1:
        raise RazorError(
            f"trainer.nodes={job.settings.nodes}: on each machine start torchrun --nnodes={job.settings.nodes} "
            f"--nproc-per-node={count} --rdzv-backend=c10d --rdzv-endpoint=FIRST_MACHINE:29500 train.py ... "
            "(docs/scaling.md)."
        )
    check(job)
    (budget.kept(job.folder) or budget.planned(job.settings)).each(count)
    return count


def _said(value: object) -> str:
    """As YAML has it."""
    return "null" if value is None else str(value).lower()


def announced() -> Path | None:
    """The folder that process 0 works in, once it has said so; None: there is nothing to do.

    Raises:
        RazorError: something else than torchrun started the processes.
    """
    folder = _store().get(FOLDER).decode()
    return Path(folder) if folder else None


def announce(folder: Path | None) -> None:
    """Tell the folder to the other processes, if there are any that wait for it; the first word stands."""
    if processes.started() and processes.rank() == 0 and not _announced:
        _announced.append(folder)
        _store().set(FOLDER, "" if folder is None else str(folder))


_announced: list[Path | None] = []


def _store() -> TCPStore:
    from torch.distributed import TCPStore

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise RazorError("Several processes of a new run are started by torchrun (docs/scaling.md).")
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(*place, is_master=False, timeout=timedelta(hours=1))


def only_first_talks() -> None:
    """Silence what all processes but the first print; errors stay."""
    if processes.rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for as long as this process lives
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
