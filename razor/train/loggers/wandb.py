"""Weights & Biases: online if you are logged in, else offline in the run folder; never a prompt, never a hang.

The run's id lies in `logs/wandb.id`, so a resumed run continues the same W&B run; offline it adds a part, which
`wandb sync` joins to the first. A server that does not answer within `timeout` seconds turns a run of mode auto
into an offline one.
"""

from __future__ import annotations

import logging
import netrc
import os
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger

from razor import processes
from razor.errors import RazorError
from razor.evals.report import Report
from razor.train.loggers.described import Described, check_artifacts, kept_id, require
from razor.train.loggers.forgiving import Forgiving
from razor.train.loggers.publish import FIGURES, files_of, final_values, table_of

MODES = ("auto", "online", "offline")
FINISH = 300.0
"""Seconds that the end of a run waits for uploads; what is left can be sent by `wandb sync`."""


def wandb_logger(
    folder: Path,
    name: str,
    project: str = "razor",
    mode: str = "auto",
    artifacts: str = "report",
    entity: str | None = None,
    timeout: float = 20.0,
) -> Logger:
    """A W&B run.

    Args:
        folder: of the run.
        name: of the run.
        project: W&B project.
        mode: auto, online or offline; WANDB_MODE wins over it.
        artifacts: "report", "all" (the packed model too) or "none".
        entity: W&B user or team; None: your default.
        timeout: seconds to wait for the server at the start.

    Raises:
        RazorError: an unknown choice, or mode online without a key.
    """
    if mode not in MODES:
        raise RazorError(f"logger.wandb.mode='{mode}'. Choices: {', '.join(MODES)}.")
    check_artifacts("wandb", artifacts)
    require("wandb", "wandb", "wandb")
    mode = {"dryrun": "offline", "run": "online"}.get(wanted := os.environ.get("WANDB_MODE") or mode, wanted)
    keyed = _logged_in()
    if mode == "online" and not keyed:
        raise RazorError(
            "logger.wandb.mode=online, but nobody is logged in: run `wandb login`, set WANDB_API_KEY, or take "
            "logger.wandb.mode=auto."
        )
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("wandb").setLevel(logging.ERROR)
    strict, mode = mode == "online", ("online" if keyed else "offline") if mode == "auto" else mode
    return Forgiving("wandb", WandbRun(folder, name, project, mode, strict, artifacts, entity, timeout))


class WandbRun(WandbLogger):
    """Lightning's logger, continued after a break, and with a way to go offline.

    Args:
        folder, name, project, artifacts, entity, timeout: see `wandb_logger`.
        mode: of wandb.init.
        strict: an error, instead of going offline, if the server cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        project: str,
        mode: str,
        strict: bool,
        artifacts: str,
        entity: str | None,
        timeout: float,
    ) -> None:
        import wandb

        self.folder, self.artifacts, self.strict, self.timeout = folder, artifacts, strict, timeout
        self.described = Described.of(folder)
        settings: dict[str, Any] = {"init_timeout": timeout, "silent": True}
        if "finish_timeout" in getattr(wandb.Settings, "model_fields", {}):  # newer clients
            settings["finish_timeout"] = FINISH
        super().__init__(
            name=name,
            project=project,
            save_dir=folder,
            log_model=False,
            entity=entity,
            mode=mode,  # and not Lightning's `offline`, which sets WANDB_MODE for all that comes after
            group=self.described.sweep,
            job_type="distill",
            tags=self.described.tags,
            config=self.described.config,
            settings=wandb.Settings(**settings),
        )
        self._wandb_init.pop("anonymous", None)  # wandb warns of the mere word

    @property
    def mode(self) -> str:
        """online, offline or disabled."""
        return str(self._wandb_init["mode"])

    @property
    def experiment(self) -> Any:
        """The W&B run, started at the first use.

        Raises:
            RazorError: mode online was asked for and the server cannot be reached.
        """
        if processes.rank():  # Lightning's stand-in
            return super().experiment
        if self._experiment is None:
            identity = kept_id(self.folder, "wandb", lambda: uuid.uuid4().hex[:8])
            self._wandb_init["id"] = self._id = identity
            self._start()
        return super().experiment

    def _start(self) -> None:
        """Start it; offline if the server does not answer."""
        import wandb
        from wandb.errors import Error

        try:
            _ = super().experiment
        except Error as error:
            if self.mode != "online":
                raise
            reason = " ".join(str(error).split())[:160]
            if self.strict:
                raise RazorError(
                    f"logger.wandb.mode=online, but the server cannot be reached ({reason}); "
                    "mode=auto goes offline."
                ) from error
            print(f"W&B cannot be reached, so this run is logged offline ({reason}).", flush=True)
            wandb.teardown()  # or the service holds on to the id
            self._wandb_init["mode"] = "offline"
            _ = super().experiment

    def publish(self, report: Report, folder: Path) -> None:
        """Evaluation table, figures, `final/*` in the summary, and artifacts."""
        import wandb

        run = self.experiment
        columns, rows = table_of(report)
        panels: dict[str, Any] = {"evaluation": wandb.Table(columns=[*columns], data=rows)}
        for figure in FIGURES:
            if (folder / figure).is_file():
                panels[figure.removesuffix(".png")] = wandb.Image(str(folder / figure))
        run.log(panels)
        run.summary.update(final_values(report))
        if self.artifacts != "none":
            self._keep(run, "report", "report", report, files_of(folder))
        if self.artifacts == "all":
            self._keep(run, "packed", "model", report, sorted((folder / "packed").iterdir()))
        if self.mode == "offline":
            print(f"sync     {self.sync_command(folder)}", flush=True)

    def _keep(self, run: Any, what: str, sort: str, report: Report, paths: list[Path]) -> None:
        """One artifact, versions of which are the runs of this model at these bits; its alias is the score."""
        import wandb

        about = [word for word in (self.described.model, self.described.quant) if word]
        artifact = wandb.Artifact(
            "-".join([*about, what]) if about else f"run-{what}", sort, metadata=final_values(report)
        )
        for path in paths:
            artifact.add_file(str(path))
        run.log_artifact(artifact, aliases=["latest", score_alias(report)])

    def sync_command(self, folder: Path) -> str:
        """What sends an offline run, all its parts, to the server."""
        return f"wandb sync {folder / 'wandb'}/offline-run-*-{self._id}"

    def close(self, status: str) -> None:
        """Finish the run."""
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None


def score_alias(report: Report) -> str:
    """The last row's average score, or without tasks its held-out KL, as an alias: score-41.2, kl-0.314."""
    row = report.rows[-1]
    return f"kl-{row.held_out.kl:.3f}" if row.scores.average is None else f"score-{row.scores.average:.1f}"


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
