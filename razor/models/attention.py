"""Keys and values in few bits, wherever attention runs.

What a quantized KV cache does to a model has to be felt in training and in scoring, where there is no
cache. So the rounding sits in the attention function itself: Transformers lets one be registered by name,
and ours rounds keys (after rotary embedding) and values per token and head, then calls SDPA. It acts in the
teacher-forced pass, at prefill, in log-likelihood scoring and in `generate()`, with padding and packing masks
intact and under gradient checkpointing. A token's keys depend on nothing but that token, so decoding token
by token equals one pass.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from razor.errors import RazorError
from razor.quant import Format

NAME = "razor_quantized_kv"


def quantized_kv_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """SDPA on rounded keys and values [B, heads, T, head_dim]; gradient straight through the rounding."""
    rounding = module.kv_format
    assert isinstance(rounding, Format)
    return sdpa_attention_forward(module, query, rounding(key), rounding(value), attention_mask, **options)


AttentionInterface.register(NAME, quantized_kv_attention)
# Without its own mask function a custom attention silently loses padding and packing masks.
AttentionMaskInterface.register(NAME, sdpa_mask)


def quantize_kv(model: PreTrainedModel, rounding: Format) -> None:
    """Make every attention layer of `model` round its keys and values, in place.

    Raises:
        RazorError: no attention layer was found, or the group does not divide the head dimension.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if hasattr(module, "layer_idx") and hasattr(module, "num_key_value_groups")
    ]
    if not found:
        raise RazorError(f"{type(model).__name__} has no attention layer whose KV cache could be quantized.")
    for name, module in found:
        rounding.check((module.head_dim,), f"{name} (KV, head_dim)")
        module.kv_format = rounding
    model.config._attn_implementation = NAME
