"""Loggers of a run. Each is made from the run's folder and name; none ever asks a question."""

from __future__ import annotations

import logging
import netrc
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

from razor.errors import RazorError

LOGS = "logs"


def csv_logger(folder: Path, name: str) -> Logger:
    """`logs/metrics.csv` in the run folder."""
    return CSVLogger(folder, name=LOGS, version="", flush_logs_every_n_steps=5)


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

    mode = os.environ.get("WANDB_MODE", mode)
    offline = mode == "offline" or (mode == "auto" and not _logged_in())
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("wandb").setLevel(logging.ERROR)
    return WandbLogger(name=name, project=project, save_dir=folder, offline=offline, log_model=False)


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
