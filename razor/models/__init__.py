"""Models of Transformers: where they come from, students of them, and recorded passes."""

from razor.models.attention import quantize_kv
from razor.models.byte_tokenizer import byte_tokenizer
from razor.models.gguf_package import GGUFPackage
from razor.models.hub import HubModel
from razor.models.kv_cache import QuantCache, quant_cache
from razor.models.random_model import RandomModel
from razor.models.record import layers_of, record, shape_of
from razor.models.source import ModelSource, config_from
from razor.models.student import make_student

__all__ = [
    "GGUFPackage",
    "HubModel",
    "ModelSource",
    "QuantCache",
    "RandomModel",
    "byte_tokenizer",
    "config_from",
    "layers_of",
    "make_student",
    "quant_cache",
    "quantize_kv",
    "record",
    "shape_of",
]
