"""What to make of a model, said once: formats by kind of module, losses and their weights.

A recipe is data, as a file, a dict or an object (`Recipe`). Its quantization part is formats by kind of
module (`QuantRecipe`) or a finished plan (`PlanFile`); applied to a model either becomes a `Plan` that names
every module.
"""

from razor.recipe.apply import Quantized, quantize
from razor.recipe.override import Override
from razor.recipe.plan_file import PlanFile
from razor.recipe.quant_recipe import QuantRecipe
from razor.recipe.recipe import Recipe, objective_of, quantization_of

__all__ = [
    "Override",
    "PlanFile",
    "QuantRecipe",
    "Quantized",
    "Recipe",
    "objective_of",
    "quantization_of",
    "quantize",
]
