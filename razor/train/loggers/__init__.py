"""Loggers of a run. Each is made from the run's folder and name; none ever asks a question or stops a run."""

from razor.train.loggers.csv import LOGS, ContinuedWriter, csv_logger
from razor.train.loggers.mlflow import mlflow_logger
from razor.train.loggers.publish import close, closing, publish
from razor.train.loggers.tensorboard import tensorboard_logger
from razor.train.loggers.wandb import wandb_logger

__all__ = [
    "LOGS",
    "ContinuedWriter",
    "close",
    "closing",
    "csv_logger",
    "mlflow_logger",
    "publish",
    "tensorboard_logger",
    "wandb_logger",
]
