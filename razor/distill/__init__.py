"""Losses on recorded forward passes, in pure torch."""

from razor.distill.adaptive_features import AdaptiveFeatures
from razor.distill.attention_relations import AttentionRelations
from razor.distill.batch import IGNORE, Batch, Samples
from razor.distill.divergences import JSD, TotalVariation
from razor.distill.features import Features
from razor.distill.fixed_features import FixedFeatures
from razor.distill.images import ImageBatch
from razor.distill.key_values import KeyValues
from razor.distill.logits import CrossEntropy, ForwardKL, ReverseKL
from razor.distill.loss import LayerLoss, LogitsLoss, TeacherTokens
from razor.distill.media import MediaBatch
from razor.distill.mixed import CAKLD, EAKLD
from razor.distill.objective import Objective
from razor.distill.observation import Observation
from razor.distill.routers import RouterKL, RouterZ
from razor.distill.schedule import Cosine, Linear, OffAfter, Schedule
from razor.distill.targets import Targets
from razor.distill.topk import TopKKL
from razor.distill.trace import AttentionInputs, Needs, Shape, Trace

__all__ = [
    "CAKLD",
    "EAKLD",
    "IGNORE",
    "JSD",
    "AdaptiveFeatures",
    "AttentionInputs",
    "AttentionRelations",
    "Batch",
    "Cosine",
    "CrossEntropy",
    "Features",
    "FixedFeatures",
    "ForwardKL",
    "ImageBatch",
    "KeyValues",
    "LayerLoss",
    "Linear",
    "LogitsLoss",
    "MediaBatch",
    "Needs",
    "Objective",
    "Observation",
    "OffAfter",
    "ReverseKL",
    "RouterKL",
    "RouterZ",
    "Samples",
    "Schedule",
    "Shape",
    "Targets",
    "TeacherTokens",
    "TopKKL",
    "TotalVariation",
    "Trace",
]
