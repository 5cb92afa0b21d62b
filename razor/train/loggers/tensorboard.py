"""TensorBoard: event files in `logs/tensorboard` of the run folder; `tensorboard --logdir runs` shows all runs."""

from __future__ import annotations

from pathlib import Path

import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from razor.evals.report import Report
from razor.train.loggers.csv import LOGS
from razor.train.loggers.described import Described, require
from razor.train.loggers.forgiving import Forgiving
from razor.train.loggers.publish import FIGURES, final_values


def tensorboard_logger(folder: Path, name: str) -> Logger:
    """Event files in `logs/tensorboard`; a resumed run adds one to the same folder.

    Raises:
        RazorError: the package is not installed.
    """
    require("tensorboard", "tensorboard", "razor-qad[tensorboard]")
    return Forgiving("tensorboard", EventFiles(folder))


class EventFiles(TensorBoardLogger):
    """Lightning's logger, with the report as text, scalars and images.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name=LOGS, version="tensorboard", default_hp_metric=False)
        self.described = Described.of(folder)

    def publish(self, report: Report, folder: Path) -> None:
        """The table, the config, `final/*` and the figures."""
        from matplotlib.image import imread

        writer, step = self.experiment, int(report.facts.get("steps", 0))
        writer.add_text("report", report.table(), step)
        writer.add_text("config", f"```\n{yaml.safe_dump(self.described.config)}\n```", step)
        for key, value in final_values(report).items():
            writer.add_scalar(key, value, step)
        for figure in FIGURES:
            if (folder / figure).is_file():
                picture = imread(folder / figure)[..., :3]
                writer.add_image(figure.removesuffix(".png"), picture, step, dataformats="HWC")
        writer.flush()

    def close(self, status: str) -> None:
        """Write what is left."""
        if self._experiment is not None:
            self._experiment.close()
