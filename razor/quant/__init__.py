"""Numerics, in pure torch: formats, layers, plans and exact sizes."""

from razor.quant.affine import Affine
from razor.quant.apply import quantize_modules
from razor.quant.coded import (
    CodedEmbedding,
    CodedLinear,
    encoded,
    packed_state,
    swap_in_coded,
)
from razor.quant.coded_weight import CodedWeight
from razor.quant.codes import Codes
from razor.quant.elastic import StretchedElastic
from razor.quant.float16 import Float16
from razor.quant.format import Format
from razor.quant.grouped import Grouped
from razor.quant.integer import Integer
from razor.quant.layers import FakeQuantizer, InputQuantizer, QuantEmbedding, QuantLinear
from razor.quant.learned import LearnedScale
from razor.quant.plan import Placement, Plan
from razor.quant.progress import set_progress
from razor.quant.rowmix import RowMix
from razor.quant.sites import Site, sites
from razor.quant.size import ModelSize, Size, measure
from razor.quant.ternary import Ternary
from razor.quant.view import MatrixView

__all__ = [
    "Affine",
    "CodedEmbedding",
    "CodedLinear",
    "CodedWeight",
    "Codes",
    "FakeQuantizer",
    "Float16",
    "Format",
    "Grouped",
    "InputQuantizer",
    "Integer",
    "LearnedScale",
    "MatrixView",
    "ModelSize",
    "Placement",
    "Plan",
    "QuantEmbedding",
    "QuantLinear",
    "RowMix",
    "Site",
    "Size",
    "StretchedElastic",
    "Ternary",
    "encoded",
    "measure",
    "packed_state",
    "quantize_modules",
    "set_progress",
    "sites",
    "swap_in_coded",
]
