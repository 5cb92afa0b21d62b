"""The plainest log: `logs/metrics.csv` in the run folder, a row a step."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

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
        self._write(kept)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Columns that join later: written beside, so that a kill costs no row."""
        with Path(self.metrics_file_path).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        self._write(rows)

    def _write(self, rows: list[dict[str, str]]) -> None:
        with (
            atomic_write(Path(self.metrics_file_path)) as temporary,
            temporary.open("w", newline="") as stream,
        ):
            writer = csv.DictWriter(stream, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
