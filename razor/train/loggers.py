"""Loggers of a run. Each is made from the run's folder and name; none ever asks a question."""

from __future__ import annotations

import csv
import logging
import netrc
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from razor.errors import RazorError
from razor.storage import atomic_write

LOGS = "logs"


def csv_logger(folder: Path, name: str) -> Logger:
    """`logs/metrics.csv` in the run folder, a row a step; a resumed run goes on in it."""
    logger = CSVLogger(folder, name=LOGS, version="", flush_logs_every_n_steps=1)
    logger._experiment = ContinuedWriter(logger.log_dir)
    return logger


class ContinuedWriter(ExperimentWriter):
    """Lightning's writer deletes what an interrupted run has logged; this one continues the file.

    Rows from the first step on that is logged now are made again, so the old ones go.
    """

    def __init__(self, log_dir: str) -> None:
        self._continued = False
        super().__init__(log_dir)

    def _check_log_dir_exists(self) -> None:
        """An old file is wanted."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        """Record metrics of a step."""
        if not self._continued and step is not None:
            self._continued = True
            self._keep_before(step)
        super().log_metrics(metrics_dict, step)

    def _keep_before(self, step: int) -> None:
        path = Path(self.metrics_file_path)
        if not path.is_file():
            return
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        whole = [row for row in rows if None not in row.values() and None not in row]  # a kill may cut a row
        kept = [row for row in whole if int(row["step"]) < step]
        self.metrics_keys = sorted(rows[0]) if rows else []
        with atomic_write(path) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.metrics_keys)
            writer.writeheader()
            writer.writerows(kept)


def wandb_logger(folder: Path, name: str, project: str = "razor", mode: str = "auto") -> Logger:
    """Weights & Biases: online if the user is logged in, else offline in the run folder.

    Args:
        folder: of the run.
        name: of the run.
        project: W&B project.
        mode: auto, online or offline; WANDB_MODE wins over it.
    """
    if mode not in ("auto", "online", "offline"):
        raise RazorError(f"logger.wandb.mode='{mode}'. Choices: auto, online, offline.")
    from lightning.pytorch.loggers import WandbLogger

    mode = os.environ.get("WANDB_MODE") or mode
    offline = mode == "offline" or (mode == "auto" and not _logged_in())
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("wandb").setLevel(logging.ERROR)
    logger = WandbLogger(name=name, project=project, save_dir=folder, offline=offline, log_model=False)
    logger._wandb_init.pop("anonymous", None)  # wandb warns of the mere word
    return logger


def close(loggers: list[Logger]) -> None:
    """Finish them, so that the next job of a sweep starts a run of its own."""
    for logger in loggers:
        logger.finalize("success")
        finish: Any = getattr(getattr(logger, "experiment", None), "finish", None)
        if finish is not None:
            finish()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
