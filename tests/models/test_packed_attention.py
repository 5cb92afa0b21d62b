"""Attention piece by piece is attention: same states, same gradients; and it steps aside where it would not be."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen3Config

from razor.distill import Batch
from razor.models import document_attention, layers_of, packed_attention
from razor.models.packed_attention import _Pieces

WIDTH = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
LAYOUTS = {
    "one document": [[30]],
    "packed": [[11, 7, 12], [20, 10]],
    "equal rows": [[16, 14], [16, 14]],
    "padding": [[9, -21], [30]],
    "single tokens": [[1, 1, 27, 1]],
}


def batch_of(layout: list[list[int]]) -> Batch:
    positions = torch.stack([torch.cat([torch.arange(abs(n)) for n in row]) for row in layout])
    owners, count = [], 0
    for row in layout:
        numbers = []
        for length in row:
            numbers += [count if length > 0 else -1] * abs(length)
            count += length > 0
        owners.append(numbers)
    ids = torch.randint(0, 61, positions.shape, generator=torch.Generator().manual_seed(0))
    return Batch(ids, ids.clone(), positions, torch.tensor(owners))


def model_of(config: type = LlamaConfig, **more: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**WIDTH, **more), attn_implementation="sdpa")


def run(model: Any, batch: Batch, pieces: bool) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    with packed_attention.packed_attention(model.model, layers_of(model), batch) if pieces else nullcontext():
        hidden = model.model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
    chosen = hidden[batch.documents >= 0]
    towards = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(2))
    (chosen * towards).sum().backward()
    return hidden.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often attention ran in pieces."""
    calls: list[int] = []
    own = _Pieces.attend
    monkeypatch.setattr(_Pieces, "attend", lambda *a: calls.append(1) or own(*a))
    return calls


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("long", [10, 768])
@pytest.mark.parametrize("piece", [1, 4, 8, 128])
@pytest.mark.parametrize("config", [LlamaConfig, Qwen3Config])
def test_states_and_gradients(monkeypatch, attended, layout, piece, long, config):
    monkeypatch.setattr(document_attention, "LONG", long)
    monkeypatch.setattr(document_attention, "PIECE", piece)
    model, batch = model_of(config), batch_of(LAYOUTS[layout])
    found, wanted = run(model, batch, True), run(model, batch, False)
    assert len(attended) == 2  # once a layer
    real = batch.documents >= 0
    torch.testing.assert_close(found[0][real], wanted[0][real], rtol=1e-4, atol=1e-5)
    for own, other in zip(found[1], wanted[1], strict=True):
        assert float((own - other).norm() / other.norm()) < 1e-5


def test_the_model_is_left_as_it_was():
    model, batch = model_of(), batch_of(LAYOUTS["packed"])
    modules = [module for module in model.modules() if hasattr(module, "config")]
    before = [module.config for module in modules]
    run(model, batch, True)
    assert all(module.config is config for module, config in zip(modules, before, strict=True))
    copy.deepcopy(model)


@pytest.mark.parametrize("why", ["sliding window", "eager", "dropout", "another batch"])
def test_it_steps_aside(attended, why):
    batch = batch_of(LAYOUTS["packed"])
    if why == "sliding window":
        model = model_of(MistralConfig, sliding_window=5)
    elif why == "dropout":
        model = model_of(attention_dropout=0.5).train()
    else:
        model = model_of()
    if why == "eager":
        model.set_attn_implementation("eager")
    other = batch_of([[15, 15], [20, 10]]) if why == "another batch" else batch
    with packed_attention.packed_attention(model.model, layers_of(model), other):
        torch.manual_seed(1)
        found = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)[0]
    torch.manual_seed(1)
    wanted = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)[0]
    assert not attended and torch.equal(found, wanted)


def test_checkpointed_layers_run_again_as_they_ran(attended):
    model, batch = model_of().train(), batch_of(LAYOUTS["packed"])
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found, wanted = run(model, batch, True), run(model, batch, False)
    assert not attended and torch.equal(found[0], wanted[0])
    with torch.no_grad(), packed_attention.packed_attention(model.model, layers_of(model), batch):
        model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    assert len(attended) == 2


def test_compiled_layers_stay_compiled(attended):
    """A config that is another at every pass would have them compiled anew each time."""
    model, batch = model_of(), batch_of(LAYOUTS["packed"])
    wanted = run(model, batch, False)[0]
    model.model.compile(backend="eager")
    torch.testing.assert_close(run(model, batch, True)[0], wanted)
    assert not attended


def test_a_wide_window_hides_nothing(attended):
    model, batch = model_of(MistralConfig, sliding_window=64), batch_of(LAYOUTS["packed"])
    found, wanted = run(model, batch, True)[0], run(model, batch, False)[0]
    assert len(attended) == 2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
