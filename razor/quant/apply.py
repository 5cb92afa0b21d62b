"""Put a plan into a model: swap layers in place, keep every parameter.

After `quantize_modules` the model's parameters are fp32 latents and its forward pass computes in
`compute_dtype` with nothing but stored numbers: quantized matrices, and norms and biases rounded to their
16-bit type. So a model in training, the same model de-quantized to 16 bits, and the packed model after a
reload give the same logits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from razor.errors import RazorError
from razor.quant.format import Format
from razor.quant.layers import FakeQuantizer, InputQuantizer, QuantEmbedding, QuantLinear
from razor.quant.lending import WEIGHTS, lend, slot
from razor.quant.plan import Plan
from razor.quant.sites import Site, sites


def quantize_modules(
    model: nn.Module, plan: Plan, compute_dtype: torch.dtype, trained: bool = True
) -> nn.Module:
    """Quantize `model` in place by `plan` (all but the KV cache, which belongs to attention).

    Args:
        model: any torch model.
        plan: must cover the model exactly.
        compute_dtype: dtype of activations and quantized weights in the forward pass.
        trained: whether it will be: its parameters become fp32 latents; they are left as they are otherwise.

    Raises:
        RazorError: the plan does not fit the model (see `Plan.check`), or the model is quantized already.
    """
    if any(isinstance(module, FakeQuantizer) for module in model.modules()):
        raise RazorError(f"This {type(model).__name__} is quantized already: start from the original.")
    plan.check(model)
    if trained:
        model.float()
    quantizers: dict[int, FakeQuantizer] = {}
    inputs: dict[str, InputQuantizer] = {}
    swapped: dict[nn.Module, nn.Module] = {}
    for site, weights, activations in planned(model, plan):
        module, key = site.module, id(site.weight)
        if key not in quantizers:
            quantizers[key] = FakeQuantizer.for_weight(site.weight, weights, site.view)
        own = quantizers[key]
        rounding = activations and inputs.setdefault(str(activations.spec()), InputQuantizer(activations))
        if type(module) is nn.Linear:
            swapped[module] = QuantLinear.from_linear(module, own, rounding)
        elif type(module) is nn.Embedding:
            swapped[module] = QuantEmbedding.from_embedding(module, own, compute_dtype)
        else:
            lend(module, site.attribute, WEIGHTS, own, compute_dtype, site.kind, rounding)
    swap(model, swapped)
    _round_the_rest(model, plan, quantizers, compute_dtype)
    return model


def planned(model: nn.Module, plan: Plan) -> list[tuple[Site, Format, Format | None]]:
    """(site, format of its weight, format of its activations) of all that a plan quantizes, in model order."""
    found = {name: site for name, site in sites(model).items() if name in plan.modules}
    places = [(site, plan.modules[n].weights, plan.modules[n].activations) for n, site in found.items()]
    return [place for place in places if place[0].fixed is None]


def swap(model: nn.Module, by: Mapping[nn.Module, nn.Module]) -> None:
    """Put modules in the place of others, wherever `model` has them; each in the mode of the one before."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in by:
                setattr(parent, name, by[child].train(child.training))


def _round_the_rest(
    model: nn.Module, plan: Plan, quantizers: dict[int, FakeQuantizer], compute_dtype: torch.dtype
) -> None:
    """Parameters that the plan does not quantize are rounded to 16 bits where they are read."""
    fixed = {id(site.weight): plan.modules[name].weights for name, site in sites(model).items() if site.fixed}
    for module in list(model.modules()):
        if isinstance(module, Format):  # its parameters are learned scales, which it rounds itself
            continue
        # Batch norm keeps its statistics in fp32 and wants scale and shift beside them, whatever its input is.
        dtype = torch.float32 if isinstance(module, _BatchNorm) else compute_dtype
        for own, parameter in list(module.named_parameters(recurse=False)):
            key = id(parameter)
            known = isinstance(module._modules.get(slot(WEIGHTS, own)), FakeQuantizer)
            if known or not parameter.is_floating_point():
                continue
            if key not in quantizers:
                quantizers[key] = FakeQuantizer.for_weight(parameter, fixed.get(key, plan.rest))
            lend(module, own, WEIGHTS, quantizers[key], dtype)
