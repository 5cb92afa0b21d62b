"""What a run does beside training: one concern a file, one option of conf/callbacks each (docs/callbacks.md)."""

from razor.train.callbacks.base import RunCallback, RunFacts, check_callbacks
from razor.train.callbacks.best import Best
from razor.train.callbacks.bits import BitSchedule, Stage
from razor.train.callbacks.code_flips import CodeFlips
from razor.train.callbacks.early_stop import EarlyStop
from razor.train.callbacks.ema import EMA
from razor.train.callbacks.freeze import Freeze
from razor.train.callbacks.held_out import HeldOutScores
from razor.train.callbacks.learning_rates import LearningRates
from razor.train.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "Best",
    "BitSchedule",
    "CodeFlips",
    "EarlyStop",
    "Freeze",
    "HeldOutScores",
    "LearningRates",
    "RunCallback",
    "RunFacts",
    "Stage",
    "Throughput",
    "check_callbacks",
]
