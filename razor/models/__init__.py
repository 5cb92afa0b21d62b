"""Models of Transformers: where they come from, students of them, and recorded passes."""

from razor.models.attention import quantize_kv
from razor.models.byte_tokenizer import byte_tokenizer
from razor.models.gguf_package import GGUFPackage
from razor.models.hub import HubModel
from razor.models.kv_cache import QuantCache, quant_cache
from razor.models.random_model import RandomModel
from razor.models.record import inputs_of, record, shape_of
from razor.models.source import ModelSource, config_from
from razor.models.student import make_student
from razor.models.task import Task, auto_class, task_of
from razor.models.trained import TrainedModel
from razor.quant.anatomy import layers_of

__all__ = [
    "GGUFPackage",
    "HubModel",
    "ModelSource",
    "QuantCache",
    "RandomModel",
    "Task",
    "TrainedModel",
    "auto_class",
    "byte_tokenizer",
    "config_from",
    "inputs_of",
    "layers_of",
    "make_student",
    "quant_cache",
    "quantize_kv",
    "record",
    "shape_of",
    "task_of",
]
