"""Put a plan into a model: swap layers in place, keep every parameter.

After `quantize_modules` the model's parameters are fp32 latents and its forward pass computes in
`compute_dtype` with nothing but stored numbers: quantized matrices, and norms and biases rounded to their
16-bit type. So a model in training, the same model de-quantized to 16 bits, and the packed model after a
reload give the same logits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from razor.errors import RazorError
from razor.quant.layers import FakeQuantizer, QuantEmbedding, QuantLinear, Rounded
from razor.quant.plan import Plan

SWAPPABLE = (nn.Linear, nn.Embedding)


def quantize_modules(model: nn.Module, plan: Plan, compute_dtype: torch.dtype) -> nn.Module:
    """Quantize `model` in place by `plan` (all but the KV cache, which belongs to attention).

    Args:
        model: any torch model; its parameters become fp32 latents.
        plan: must cover the model exactly.
        compute_dtype: dtype of activations and quantized weights in the forward pass.

    Raises:
        RazorError: the plan does not fit the model (see `Plan.check`), or a subclass of Linear or Embedding
            computes something of its own that a swap would lose.
    """
    plan.check(model)
    for name in plan.modules:
        if type(module := model.get_submodule(name)) not in SWAPPABLE:
            raise RazorError(f"'{name}' is a {type(module).__name__}, whose own forward would be lost.")
    model.float()
    quantizers: dict[int, FakeQuantizer] = {}
    for name, place in plan.modules.items():
        module = model.get_submodule(name)
        weights = quantizers.setdefault(id(module.weight), FakeQuantizer(place.weights))
        swapped = (
            QuantLinear.from_linear(module, weights, place.activations)
            if isinstance(module, nn.Linear)
            else QuantEmbedding.from_embedding(module, weights, compute_dtype)  # type: ignore[arg-type]
        )
        swapped.train(module.training)
        model.set_submodule(name, swapped)
    _round_the_rest(model, plan, compute_dtype)
    return model


def _round_the_rest(model: nn.Module, plan: Plan, compute_dtype: torch.dtype) -> None:
    for module in list(model.modules()):
        quantized = isinstance(module, (QuantLinear, QuantEmbedding))
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_floating_point() and not (quantized and name == "weight"):
                rounded = Rounded(plan.rest, compute_dtype)
                # unsafe: the dtype changes on purpose, from fp32 latent to the compute dtype
                parametrize.register_parametrization(module, name, rounded, unsafe=True)
