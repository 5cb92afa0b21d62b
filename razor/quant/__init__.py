"""Numerics, in pure torch: formats, layers, plans and exact sizes."""

from razor.quant.apply import quantize_modules
from razor.quant.coded import CodedEmbedding, CodedLinear, CodedWeight, packed_state, swap_in_coded
from razor.quant.codes import Codes
from razor.quant.float16 import Float16
from razor.quant.format import Format
from razor.quant.grouped import Grouped
from razor.quant.integer import Integer
from razor.quant.layers import QuantEmbedding, QuantLinear
from razor.quant.plan import Placement, Plan
from razor.quant.rowmix import RowMix
from razor.quant.size import ModelSize, Size, measure
from razor.quant.ternary import Ternary

__all__ = [
    "CodedEmbedding",
    "CodedLinear",
    "CodedWeight",
    "Codes",
    "Float16",
    "Format",
    "Grouped",
    "Integer",
    "ModelSize",
    "Placement",
    "Plan",
    "QuantEmbedding",
    "QuantLinear",
    "RowMix",
    "Size",
    "Ternary",
    "measure",
    "packed_state",
    "quantize_modules",
    "swap_in_coded",
]
