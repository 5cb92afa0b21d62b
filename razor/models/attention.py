"""Keys and values in few bits, wherever attention runs.

What a quantized KV cache does to a model has to be felt in training and in scoring, where there is no
cache. So the rounding sits in the attention function itself: Transformers lets one be registered by name,
and ours rounds keys (after rotary embedding) and values per token and head, then calls the function that the
model used before: SDPA, flash attention, or the eager one of its own modeling file. It acts in the
teacher-forced pass, at prefill, in log-likelihood scoring and in `generate()`, with padding, packing and
sliding-window masks intact and under gradient checkpointing. A token's keys depend on nothing but that token,
so decoding token by token equals one pass.

With a `QuantCache` (see `razor.models.kv_cache`) keys and values come out of the cache as they were stored, and
are not rounded again.
"""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from razor.errors import RazorError
from razor.models.kv_cache import QuantCache, use_in_generate
from razor.models.kv_layers import is_from_quant_cache
from razor.quant import Format

SUFFIX = "_razor_quantized_kv"
"""`sdpa` with quantized keys and values is registered as `sdpa_razor_quantized_kv`, and so on. The name begins as
the implementation's own does because Transformers and others tell flash attention and eager by it."""

IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flash_attention_4")
"""What may run below the rounding; and flash attention kernels under names of their own."""


def quantized_kv_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention of `module` as it was, on rounded keys and values.

    Args:
        module: an attention layer prepared by `quantize_kv`.
        query: [B, heads, T, head_dim].
        key: [B, KV heads, all tokens, head_dim], after rotary embedding; rounded, unless a `QuantCache` did that.
        value: as `key`.
        attention_mask: as the implementation below wants it.
        options: passed on (scaling, dropout, sliding_window, softcap, position_ids, ...).

    Returns:
        [B, T, heads, head_dim], gradient straight through the rounding; and what else the implementation gives.
    """
    if not module.kv_stored:
        key, value = module.kv_format(key), module.kv_format(value)
    elif not (is_from_quant_cache(key) and is_from_quant_cache(value)):
        raise RazorError(
            f"{type(module).__name__} changes keys or values after they were cached, so QuantCache stores other "
            "numbers than it was trained with: use past_key_values=DynamicCache(config=model.config)."
        )
    own, name = module.kv_attention, module.config._attn_implementation
    if "flash" in name:  # loads its kernels by the name that the layer's config gives
        module = Seen(module, config=Seen(module.config, _attn_implementation=name.removesuffix(SUFFIX)))
    return own(module, query, key, value, attention_mask, **options)


def quantize_kv(model: PreTrainedModel, rounding: Format) -> None:
    """Make every attention layer of `model` round its keys and values, in place.

    `model.generate()` from then on keeps them in a `QuantCache`, unless it is given another cache or the model
    has layers that it cannot hold; the numbers are the same on any.

    Args:
        model: decoder-only; its attention implementation (`attn_implementation=` when it was loaded) stays.
        rounding: a format whose groups lie within a token and head.

    Raises:
        RazorError: no attention layer was found, or one that Razor could not reach; the format does not fit the
            head dimension; an attention implementation that is not one of IMPLEMENTATIONS.
    """
    check_kv(model, rounding)
    for layer in attention_layers(model).values():
        former = _former(layer)
        _register(former)
        if not hasattr(layer, "kv_format"):
            layer.register_forward_pre_hook(_look_at_cache, with_kwargs=True)
        layer.kv_format, layer.kv_stored = rounding, False
        layer.kv_attention = own_attention(layer, former)
        layer.config._attn_implementation = former + SUFFIX  # layers may share it
    use_in_generate(model)


def check_kv(model: PreTrainedModel, rounding: Format) -> None:
    """Find out on any device, also meta, whether `quantize_kv` would work.

    Raises:
        RazorError: as `quantize_kv`.
    """
    for name, layer in attention_layers(model).items():
        rounding.check_tokens(_head_dim(layer), f"{name} (KV, head_dim)")
        former = _former(layer)
        if former not in IMPLEMENTATIONS and "flash" not in former:
            raise RazorError(
                f"'{name}' runs attention as '{former}', below which keys and values cannot be quantized. "
                f"Choices: {', '.join(IMPLEMENTATIONS)} (attn_implementation=...)."
            )


def attention_layers(model: PreTrainedModel) -> dict[str, Any]:
    """The layers of `model` that keep keys and values, by their full names.

    Those are the modules whose forward pass updates `past_key_values`; to be reached, it must take its attention
    function from Transformers' table of them (`ALL_ATTENTION_FUNCTIONS`).

    Raises:
        RazorError: there are none, or some that do not, or whose cache holds something else.
    """
    kind = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise RazorError(
            f"{kind} has an encoder: keys and values of decoder-only models alone can be quantized."
        )
    found = {name: module for name, module in model.named_modules() if _keeps_keys(code_of(module))}
    for name, module in found.items():
        if "ALL_ATTENTION_FUNCTIONS" not in code_of(module).co_names:
            raise RazorError(
                f"'{name}' ({type(module).__name__}) does not call attention through Transformers' attention "
                "functions, where keys and values are quantized: set quant.kv_cache=none for this model."
            )
        if hasattr(module, "kv_lora_rank"):
            raise RazorError(
                f"'{name}' ({type(module).__name__}) caches a compressed form of keys and values (multi-head "
                "latent attention), which cannot be quantized yet: set quant.kv_cache=none for this model."
            )
    if not found:
        raise RazorError(f"{kind} has no attention layer whose KV cache could be quantized.")
    return found


def code_of(module: nn.Module) -> CodeType:
    """Code of a module's forward pass, below its decorators."""
    return inspect.unwrap(type(module).forward).__code__


def _keeps_keys(code: CodeType) -> bool:
    return "update" in code.co_names and any("past" in name for name in code.co_varnames)


def _head_dim(module: Any) -> int:
    config = module.config
    for known in (getattr(module, "head_dim", None), getattr(config, "head_dim", None)):
        if known is not None:
            return int(known)
    return int(config.hidden_size // config.num_attention_heads)


def _former(layer: Any) -> str:
    """The implementation below the rounding."""
    return str(layer.config._attn_implementation).removesuffix(SUFFIX)


def own_attention(module: nn.Module, former: str) -> Any:
    """The function that the layer itself would take for this name, from where it would take it."""
    names = inspect.unwrap(type(module).forward).__globals__
    return names["ALL_ATTENTION_FUNCTIONS"].get_interface(former, names["eager_attention_forward"])


def _look_at_cache(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before each pass: is the rounding still in its place, and does the cache do it?"""
    if not module.config._attn_implementation.endswith(SUFFIX):
        raise RazorError(
            f"The attention implementation was set to '{module.config._attn_implementation}', which would leave "
            "keys and values as they are: call quantize_kv(model, format) again after changing it."
        )
    module.kv_stored = any(isinstance(given, QuantCache) for given in (*args, *kwargs.values()))


def _register(former: str) -> None:
    AttentionInterface.register(former + SUFFIX, quantized_kv_attention)
    # Without its own mask function a custom attention silently loses padding and packing masks.
    AttentionMaskInterface.register(former + SUFFIX, ALL_MASK_ATTENTION_FUNCTIONS[former])


for _name in IMPLEMENTATIONS:
    _register(_name)


class Seen:
    """Another object with some attributes told otherwise; nothing is copied or changed."""

    def __init__(self, target: Any, **told: Any) -> None:
        self.__dict__.update(told)
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)
