"""MLflow: metrics, parameters and files of the run, on a server or in a folder of files.

Where: `tracking_uri`, else MLFLOW_TRACKING_URI, else the folder `mlruns` beside the run folders, so that
`mlflow ui --backend-store-uri runs/mlruns` compares them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger

from razor import processes
from razor.errors import RazorError
from razor.evals.report import Report
from razor.train.loggers.csv import LOGS
from razor.train.loggers.described import Described, check_artifacts, kept_id, require
from razor.train.loggers.forgiving import Forgiving, without_secrets
from razor.train.loggers.publish import files_of, final_values

LONGEST = 500
"""Characters of a parameter's value that MLflow keeps."""


def mlflow_logger(
    folder: Path,
    name: str,
    experiment: str = "razor",
    tracking_uri: str | None = None,
    artifacts: str = "report",
) -> Logger:
    """A run of MLflow; a resumed run continues it.

    Args:
        folder: of the run.
        name: of the run.
        experiment: MLflow's word for a project.
        tracking_uri: see above.
        artifacts: "report", "all" (the packed model too) or "none".

    Raises:
        RazorError: the package is not installed, an unknown choice, or a place that MLflow refuses.
    """
    check_artifacts("mlflow", artifacts)
    require("mlflow", "mlflow", "razor-qad[mlflow]")
    for key, value in (
        ("MAX_RETRIES", "2"),
        ("TIMEOUT", "10"),
    ):  # of a server that is away; minutes otherwise
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{key}", value)
    if tracking_uri and without_secrets(tracking_uri) != tracking_uri:  # the config is stored, and uploaded
        raise RazorError(
            "logger.mlflow.tracking_uri holds a password: give it as MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD in the environment."
        )
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    uri = uri or (folder.resolve().parent / "mlruns").as_uri()
    if uri.startswith("file:"):  # newer versions want to be told that files, not a database, are meant
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch.loggers.mlflow").setLevel(logging.ERROR)  # "not found. Creating it."
    try:
        inner = MLflowRun(folder, name, experiment, uri, artifacts)
    except Exception as error:  # of the client, which checks where it is to write
        reason = without_secrets(" ".join(str(error).split()))[:200]
        raise RazorError(
            f"logger=mlflow cannot use '{without_secrets(uri)}' ({reason}): see logger.mlflow.tracking_uri."
        ) from None  # the client's own text may hold a password
    return Forgiving("mlflow", inner)


class MLflowRun(MLFlowLogger):
    """Lightning's logger, with the run's id kept in its folder, its config as parameters and its report as files.

    Args:
        folder: of the run.
        name: of the run.
        experiment: MLflow's word for a project.
        uri: where.
        artifacts: see `mlflow_logger`.
    """

    def __init__(self, folder: Path, name: str, experiment: str, uri: str, artifacts: str) -> None:
        self.folder, self.artifacts, self.described = folder, artifacts, Described.of(folder)
        known = folder / LOGS / "mlflow.id"
        keys = {"model": self.described.model, "quant": self.described.quant, "sweep": self.described.sweep}
        super().__init__(
            experiment,
            name,
            uri,
            {key: value for key, value in keys.items() if value},
            run_id=known.read_text().strip() if known.is_file() else None,
        )

    @property
    def experiment(self) -> Any:
        """MLflow's client; the run is made, or found and marked as running again, at the first use."""
        first, known = not self._initialized, self._run_id
        client = super().experiment
        if first and processes.rank() == 0:
            if known is not None:
                client.update_run(known, status="RUNNING")
            else:
                kept_id(self.folder, "mlflow", lambda: str(self._run_id))
                self._log_config(client)
        return client

    def _log_config(self, client: Any) -> None:
        from mlflow.entities import Param

        pairs = [Param(key, str(value)[:LONGEST]) for key, value in self.described.flat().items()]
        for start in range(0, len(pairs), 100):  # as many as one request may hold
            client.log_batch(self._run_id, params=pairs[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Numbers of a step, under names that MLflow can hold (see `safe`)."""
        super().log_metrics({safe(name): value for name, value in metrics.items()}, step)

    def publish(self, report: Report, folder: Path) -> None:
        """`final/*` and the files of the report; the packed model if artifacts is "all"."""
        client, step = self.experiment, int(report.facts.get("steps", 0))
        for key, value in final_values(report).items():
            client.log_metric(self.run_id, safe(key), value, step=step)
        if self.artifacts == "none":
            return
        for path in files_of(folder):
            client.log_artifact(self.run_id, str(path))
        if self.artifacts == "all":
            client.log_artifacts(self.run_id, str(folder / "packed"), "packed")

    def close(self, status: str) -> None:
        """Mark the run as finished or failed."""
        if self._initialized:
            self.experiment.set_terminated(self._run_id, "FINISHED" if status == "success" else "FAILED")


def safe(name: str) -> str:
    """A name with just one slash: its stores make folders of them, so no name may be another's folder.

    gradient_norm -> step/gradient_norm, codes/flipped/layer_03 -> codes/flipped.layer_03
    """
    group, slash, rest = name.partition("/")
    return f"{group}/{rest.replace('/', '.')}" if slash else f"step/{name}"
