"""Proving a GGUF in llama.cpp: the same tokens for a text, the same predictions for tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.export.gguf.architectures import Architecture
from razor.export.gguf.reference import (
    fp32_model,
    kl_per_token,
    probe_tokens,
    reference_logits,
    rounded_like_llama_cpp,
)
from razor.export.gguf.twin import compare_twin
from razor.export.gguf.writing import Entry
from razor.export.words import TEXTS, texts
from razor.models.llama_process import LlamaProcess

if TYPE_CHECKING:
    from razor.export.compressed import Compressed

FP32_LIMIT = 1e-2
"""Largest difference of a logit between fp32 and fp32."""

INT8_FACTOR = 3.0
"""How much more than int8 activations of the same blocks may move predictions; they are never the same twice."""


def compare_tokens(llama: LlamaProcess, tokenizer: Any) -> int:
    """Compare how both read texts; how many they were.

    Raises:
        RazorError: they read one differently.
    """
    count = 0
    for text in texts(tokenizer):
        for special in (False, True):
            ours = tokenizer(text, add_special_tokens=special)["input_ids"]
            theirs = llama.tokenize(text, special)
            if ours != theirs:
                at = next((i for i, pair in enumerate(zip(ours, theirs)) if pair[0] != pair[1]), 0)  # noqa: B905
                raise RazorError(
                    f"llama.cpp reads {text[:60]!r} as other tokens than Transformers (from token {at}: "
                    f"{theirs[at : at + 4]}, not {ours[at : at + 4]}): this tokenizer cannot be written as GGUF."
                )
        count += 1
    return count


def compare_head(compressed: Compressed, architecture: Architecture, folder: Path) -> dict[str, float]:
    """Compare the first layers in fp32 (see `razor.export.gguf.twin`).

    Raises:
        RazorError: llama.cpp computes something else.
    """
    facts = logit_facts(*compare_twin(compressed, architecture, folder))
    if not facts["largest_logit_difference"] <= FP32_LIMIT:  # a NaN is no proof
        raise RazorError(
            f"llama.cpp does not compute the same model: in fp32 the logits of its first layers differ by up to "
            f"{facts['largest_logit_difference']:.3g}, above the limit of {FP32_LIMIT:g}."
        )
    return facts


def compare_logits(
    llama: LlamaProcess, compressed: Compressed, entries: Sequence[Entry], limit: float
) -> dict[str, float]:
    """Compare predictions on 64 tokens with the model in fp32.

    Args:
        llama: has the file open, with keys and values in fp32 and flash attention off.
        compressed: the model.
        entries: the tensors of the file.
        limit: mean KL per token, nats, that is let pass; else they may differ by `INT8_FACTOR` times what int8
            activations change in the reference.

    Raises:
        RazorError: they differ by more.
    """
    tokens, model = probe_tokens(compressed, TEXTS[0]), fp32_model(compressed)
    expected = reference_logits(model, tokens)
    facts = logit_facts(expected, torch.from_numpy(llama.logits(tokens).copy()))
    reached = facts["kl_per_token"]
    if reached <= limit:
        return facts
    with rounded_like_llama_cpp(model, entries):
        facts["kl_of_int8_activations"] = logit_facts(expected, reference_logits(model, tokens))[
            "kl_per_token"
        ]
    limit = max(limit, INT8_FACTOR * facts["kl_of_int8_activations"])
    if not reached <= limit:  # a NaN is no proof
        raise RazorError(
            f"llama.cpp does not compute the same model: the mean KL per token is {reached:.3g}, above the limit "
            f"of {limit:.3g} (int8 activations alone: {facts['kl_of_int8_activations']:.3g}; same likeliest token "
            f"{facts['same_top1']:.0f} %)."
        )
    return facts


def compare_fp32(llama: LlamaProcess, compressed: Compressed) -> dict[str, float]:
    """Compare the logits of a file of fp32 tensors with the model in fp32.

    Raises:
        RazorError: they differ.
    """
    tokens = probe_tokens(compressed, TEXTS[0])
    expected = reference_logits(fp32_model(compressed), tokens)
    facts = logit_facts(expected, torch.from_numpy(llama.logits(tokens).copy()))
    if not facts["largest_logit_difference"] <= FP32_LIMIT:
        raise RazorError(
            "llama.cpp does not compute the same model: in fp32 logits differ by up to "
            f"{facts['largest_logit_difference']:.3g}, above the limit of {FP32_LIMIT:g}."
        )
    return facts


def logit_facts(expected: torch.Tensor, found: torch.Tensor) -> dict[str, float]:
    """What two sets of logits [tokens, vocabulary] say of each other."""
    kl = kl_per_token(expected, found)
    same = (expected.argmax(-1) == found.argmax(-1)).double().mean()
    return {
        "tokens": float(len(expected)),
        "largest_logit_difference": float((expected - found).abs().max()),
        "kl_per_token": float(kl.mean()),
        "largest_kl": float(kl.max()),
        "same_top1": 100 * float(same),
    }


def open_for_proof(path: Path) -> LlamaProcess:
    """llama.cpp as close to the reference as it goes: keys and values in fp32, no flash attention."""
    return LlamaProcess(path, context=512, kv="f32", flash=False)
