"""Small models for tests of GGUF: an architecture each, with whatever llama.cpp has to be told about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from razor.export.compressed import Compressed
from razor.models import RandomModel
from razor.quant import Format, Integer, Plan
from tests.export.hf_models import packed_by, plan_of

BASE = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": True,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
WINDOWS = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": BASE | {"model_type": "llama", "tie_word_embeddings": False},
    "llama_biases": BASE | {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama_llama3": BASE | {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama_linear": BASE
    | {"model_type": "llama", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "qwen3": BASE | {"model_type": "qwen3", "rms_norm_eps": 1e-6},
    "qwen3_yarn": BASE | {"model_type": "qwen3", "rope_parameters": YARN},
    "gemma3": BASE
    | {
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": 16,
        "sliding_window": 24,
        "rope_parameters": WINDOWS,
        "hidden_activation": "gelu_pytorch_tanh",
    },
}

WIDE = BASE | {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "head_dim": 64,
    "initializer_range": 0.1,
}
"""Rows of 256 and 512: every block type fits."""


def random_model(architecture: dict[str, Any]) -> RandomModel:
    """With random weights and a tokenizer of bytes."""
    return RandomModel("tiny", architecture)


def packed_in(
    folder: Path,
    architecture: dict[str, Any],
    linear: Format,
    ends: Format | None = None,
    **exceptions: Format,
) -> Compressed:
    """A packed model with one format for decoder linears, but others by the last part of their name."""
    source = random_model(architecture)
    plan = plan_of(source, linear, ends or Integer(8, 32), **exceptions)
    order = sorted(plan.modules, key=lambda name: name == "lm_head")  # as models list them
    return packed_by(folder, source, Plan({name: plan.modules[name] for name in order}))
