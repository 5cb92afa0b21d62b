"""Losses on recorded forward passes, in pure torch."""

from razor.distill.batch import IGNORE, Batch
from razor.distill.features import AdaptiveFeatures
from razor.distill.logits import EAKLD, CrossEntropy, ForwardKL, ReverseKL
from razor.distill.loss import FeatureLoss, LogitsLoss
from razor.distill.objective import Objective, Observation
from razor.distill.trace import Trace

__all__ = [
    "EAKLD",
    "IGNORE",
    "AdaptiveFeatures",
    "Batch",
    "CrossEntropy",
    "FeatureLoss",
    "ForwardKL",
    "LogitsLoss",
    "Objective",
    "Observation",
    "ReverseKL",
    "Trace",
]
