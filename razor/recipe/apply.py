"""A recipe meets a model: the one call that any training loop needs before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from razor.errors import RazorError
from razor.models.student import quantize_in_place
from razor.quant import Plan
from razor.recipe.recipe import Recipe

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Quantized:
    """What was done to a model, kept at `model.razor`: enough to pack it.

    Attributes:
        plan: formats by module.
        compute_dtype: of the forward pass.
        recipe: where they come from.
        w_a_kv: widths of this model, as in 'W2.79-A8-KV8'.
    """

    plan: Plan
    compute_dtype: torch.dtype
    recipe: Recipe
    w_a_kv: str


def quantize(model: Model, recipe: Recipe | Mapping[str, Any] | str | Path) -> Model:
    """Quantize a model in place and return it; nothing is copied.

    Its parameters become fp32 latents that any optimizer can train, its forward pass computes in the recipe's
    dtype with quantized weights, activations, keys and values, and `model.razor` says what was done. A teacher
    has to be copied before.

    Args:
        model: of Transformers; or any torch module, if keys and values stay as they are.
        recipe: see `Recipe.load`.

    Raises:
        RazorError: the recipe is not right or does not fit the model, or the model is quantized already.
    """
    recipe = Recipe.load(recipe)
    if recipe.quant is None:
        raise RazorError(f"The recipe '{recipe.name}' has no quant section.")
    if hasattr(model, "razor"):
        raise RazorError("This model is quantized already (model.razor says how): start from the original.")
    plan = recipe.quant.plan(model)
    quantize_in_place(model, plan, recipe.dtype)  # type: ignore[arg-type]
    model.razor = Quantized(plan, recipe.dtype, recipe, recipe.quant.w_a_kv)  # type: ignore[assignment]
    return model
