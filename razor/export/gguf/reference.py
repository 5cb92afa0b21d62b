"""The compressed model in fp32, as a reference for llama.cpp.

llama.cpp multiplies our weights with activations that it rounds in its own way, to int8 in blocks of 32 or 256. The
student rounds activations by its plan, in groups of its own, and computes in bf16. So neither says exactly what the
other does; what both start from is the decoded model without any rounding of activations, keys and values, and that
is the reference.

How far int8 activations alone move predictions depends on the model: 1e-5 nats where they are well behaved, 3e-3
for SmolLM2 at 4 bits with its outliers, more than 1 for a model that rounding has broken. Rounding is chaotic over
thirty layers, so even the same blocks do not give the same numbers, but they give the same size of difference:
`rounded_like_llama_cpp` makes the reference feel them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.export.gguf.blocks import BlockType
from razor.quant import Placement, Plan, swap_in_coded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.export.compressed import Compressed
    from razor.export.gguf.writing import Entry

TOKENS = 64
"""Tokens of the comparison."""


def fp32_model(compressed: Compressed) -> PreTrainedModel:
    """The model in fp32, nothing rounded on the way; each weight is decoded when it is used, to save memory."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(
            compressed.config, dtype=torch.float32, attn_implementation="sdpa"
        )
    model.tie_weights()
    plan = compressed.plan
    bare = Plan({name: Placement(place.weights) for name, place in plan.modules.items()}, None, plan.rest)
    swap_in_coded(model, bare, torch.float32, hold="packed")
    model.load_state_dict(compressed.model.state_dict(), strict=False, assign=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    return model.eval()


def probe_tokens(compressed: Compressed, text: str) -> list[int]:
    """Up to 64 tokens of a text, ordinary ones only."""
    assert compressed.tokenizer is not None
    ids: list[int] = compressed.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids[:TOKENS]


@torch.no_grad()
def reference_logits(model: PreTrainedModel, tokens: Sequence[int]) -> Tensor:
    """Logits [tokens, vocabulary] in fp32."""
    return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float()


def kl_per_token(expected: Tensor, found: Tensor) -> Tensor:
    """[tokens] KL(expected || found) in nats, of logits [tokens, vocabulary]."""
    own, other = (x.double().log_softmax(-1) for x in (expected, found))
    return (own.exp() * (own - other)).sum(-1)


@contextmanager
def rounded_like_llama_cpp(model: nn.Module, entries: Sequence[Entry]) -> Iterator[None]:
    """The inputs of `model`'s linear layers are rounded as llama.cpp rounds them for the types of their weights."""
    modules, hooks = dict(model.named_modules()), []
    for entry in entries:
        for name in entry.weight.names if entry.weight is not None else ():

            def before(
                _: nn.Module, given: tuple[Any, ...], kind: BlockType | str = entry.type
            ) -> tuple[Any, ...]:
                return (rounded(given[0], kind), *given[1:]) if given[0].is_floating_point() else given

            hooks.append(modules[name].register_forward_pre_hook(before))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rounded(x: Tensor, kind: BlockType | str) -> Tensor:
    """Activations [..., columns] as llama.cpp's matrix product takes them for weights of a type.

    Codes -127..127 in blocks of 32 (Q8_0, an fp16 scale) or, for types of 256, of 256 (Q8_K, an fp32 scale); the
    16-bit type itself for weights in 16 bits (ggml-cpu.c, `vec_dot_type`).
    """
    if isinstance(kind, str):
        return x.to(getattr(torch, kind)).float()
    block = 256 if kind.size == 256 else 32
    grouped = x.float().unflatten(-1, (-1, block))
    scale = grouped.abs().amax(-1, keepdim=True) / 127
    codes = torch.where(scale > 0, grouped / scale, 0.0).round()
    return (codes * (scale if block == 256 else scale.half().float())).flatten(-2)
