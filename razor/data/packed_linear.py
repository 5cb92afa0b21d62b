"""Matrix products of a writing model, with the weights laid out once as the CPU's kernels want them.

oneDNN, the library behind bf16 products on a CPU, computes on blocks of a weight and, given a plain matrix, lays
it out in blocks at every call. For one token of each of 32 texts that takes about as long as a third of the
product itself. While a teacher writes its weights stay as they are, so the blocks can be made once. The operators
are those that PyTorch's own compiler uses for frozen weights. On a processor without bf16 products go through fp32
(`razor/half_products.py`), and what is made once is the widened weight.

**Same numbers.** The order of additions is the same, and so is every bit: that is checked here, on this machine,
for each shape of weight, before it is relied on. Whatever does not pass keeps the plain product: other dtypes,
other devices, layers of other kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from razor.half_products import FEW, slow

MOST_BYTES = 4e9
"""Models with larger weights are left alone: the blocks are a second copy of them."""

ROWS = 64
"""Tokens computed at once, as a hint for the layout; other numbers are not slower on any processor tried."""


@contextmanager
def packed_linears(model: nn.Module) -> Iterator[int]:
    """Let the linear layers of a model compute on packed weights; afterwards all is as before.

    Weights must not change meanwhile, and no gradient flows.

    Args:
        model: any module.

    Yields:
        How many layers are packed.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _eligible(layer)]
    if sum(layer.weight.nbytes for layer in layers) * (2 if slow() else 1) > MOST_BYTES:
        layers = []
    same: dict[tuple[int, ...], bool] = {}
    packed: list[nn.Linear] = []
    try:
        for layer in layers:
            forward = _packed_forward(layer)
            key = (layer.out_features, layer.in_features, layer.bias is not None)
            if key not in same:
                same[key] = _agrees(layer, forward)
            if same[key]:
                layer.forward = forward  # type: ignore[assignment, method-assign]
                packed.append(layer)
        yield len(packed)
    finally:
        for layer in packed:
            del layer.forward


def _eligible(layer: nn.Linear) -> bool:
    """A plain linear layer, in bf16, on a CPU."""
    return (
        type(layer) is nn.Linear
        and "forward" not in vars(layer)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype is torch.bfloat16
    )


def _packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    if slow():
        return _widened_forward(layer)
    weight: Any = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), ROWS)
    bias, product = layer.bias, torch.ops.mkldnn._linear_pointwise

    def forward(input: Tensor) -> Tensor:
        return product(input, weight, bias, "none", [], "")

    return forward


def _widened_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    wide = layer.weight.detach().float()
    bias = None if layer.bias is None else layer.bias.detach().float()

    def forward(input: Tensor) -> Tensor:
        if input.numel() <= FEW * input.shape[-1]:
            return nn.functional.linear(input, layer.weight, layer.bias)
        return nn.functional.linear(input.float(), wide, bias).to(input.dtype)

    return forward


def _agrees(layer: nn.Linear, forward: Callable[[Tensor], Tensor]) -> bool:
    """Whether packed and plain product are equal bit for bit, for one token and for many."""
    generator = torch.Generator().manual_seed(0)
    for count in (1, 5, ROWS):
        x = torch.randn(count, 1, layer.in_features, generator=generator).to(layer.weight.dtype)
        if not torch.equal(forward(x), nn.functional.linear(x, layer.weight, layer.bias)):
            return False
    return True
