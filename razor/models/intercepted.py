"""Stand between a layer and its attention function, for the length of a pass.

Every model calls its attention function with queries, keys and values ready: projected, normed, rotated. Whoever
wants to see them, or to compute the same more cheaply, can wrap that function here. Just the layers wanted are
touched: such a layer sees a config that names our function, or, if its keys and values are quantized, has the
function behind the rounding wrapped. The model's own config, by which masks are made, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AttentionInterface

from razor.models.attention import Seen, code_of, own_attention

SUFFIX = "_razor_intercepted"
"""`sdpa` that is wrapped becomes `sdpa_razor_intercepted`: others tell implementations by how a name begins."""

Attention = Callable[..., Any]
"""(layer, queries, keys, values, mask, **options) -> (output, weights or None), as Transformers calls it."""


def reachable_attention(blocks: nn.ModuleList) -> dict[int, Any]:
    """The attention module of each layer that has exactly one which can be reached, by layer from 1."""
    found: dict[int, Any] = {}
    for layer, block in enumerate(blocks, start=1):
        modules = [m for m in block.modules() if "ALL_ATTENTION_FUNCTIONS" in code_of(m).co_names]
        if len(modules) == 1 and hasattr(modules[0], "config"):
            found[layer] = modules[0]
    return found


@contextmanager
def intercepted(module: Any, wrap: Callable[[Attention], Attention]) -> Iterator[None]:
    """While it is open, an attention module calls `wrap(its own function)`; may be nested.

    Args:
        module: one that `reachable_attention` found.
        wrap: makes the function that is called.
    """
    quantized = hasattr(module, "kv_attention")
    attribute = "kv_attention" if quantized else "config"
    former = getattr(module, attribute)
    if quantized:
        changed: Any = wrap(former)
    else:
        name = former._attn_implementation + SUFFIX
        changed = Seen(former, _attn_implementation=name, intercept=wrap(_former(module, former)))
        AttentionInterface.register(name, _ask)
    setattr(module, attribute, changed)
    try:
        yield
    finally:
        setattr(module, attribute, former)


def is_checkpointed(model: nn.Module) -> bool:
    """Whether layers run once more in the backward pass, when nobody stands between any longer."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def is_compiled(model: nn.Module) -> bool:
    """Whether parts run as compiled code, which would be made anew at every pass for whoever stands between."""
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def implementation(module: Any) -> str:
    """Name of the attention that runs below everything that wraps it: "sdpa", "eager", ..."""
    return str(module.config._attn_implementation).split("_razor_")[0]


def _ask(module: Any, *inputs: Any, **options: Any) -> Any:
    """The registered function: which function to ask is known to the layer's config."""
    return module.config.intercept(module, *inputs, **options)


def _former(module: Any, config: Any) -> Attention:
    """The function of before, called with the config of before: flash attention loads its kernels by its name."""
    own = own_attention(module, config._attn_implementation)
    return lambda layer, *inputs, **options: own(Seen(layer, config=config), *inputs, **options)
