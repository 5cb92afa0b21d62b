"""A tokenizer and a model small enough for tests, and a cache folder that is thrown away."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from razor.models.byte_tokenizer import byte_tokenizer


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def chat_tokenizer():
    return byte_tokenizer(chat=True)


@pytest.fixture(scope="session")
def base_tokenizer():
    return byte_tokenizer(chat=False)


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=272,  # larger than the tokenizer, as published models often are
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        pad_token_id=256,
        bos_token_id=256,
        eos_token_id=258,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).eval()
