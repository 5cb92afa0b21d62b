from __future__ import annotations

import pytest
import torch
from torch import nn

from razor.distill import Needs
from razor.errors import RazorError
from razor.models import layers_of, record
from razor.quant import QuantLinear

LAYERS = 4
ALL = Needs(states=frozenset(range(LAYERS + 1)))


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture(scope="module", params=["tiny_llama", "tiny_qwen3"])
def pair(request, make_pair):
    return make_pair(f"model={request.param}", "quant=mixed_2p79")


@torch.no_grad()
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_states_are_those_that_transformers_lists(pair, which, make_packed):
    model, batch = pair[which == "teacher"], make_packed()
    trace = record(model, batch, ALL)
    listed = model(
        batch.input_ids, position_ids=batch.position_ids, use_cache=False, output_hidden_states=True
    )
    assert len(listed.hidden_states) == LAYERS + 1 == len(trace.states)
    for index, state in enumerate(listed.hidden_states):
        torch.testing.assert_close(trace.states[index], state, rtol=1e-4, atol=1e-5)
    norm, before_norm = model.get_decoder().norm, []
    handle = norm.register_forward_pre_hook(lambda _, inputs: before_norm.append(inputs[0]))
    trace = record(model, batch, ALL)
    handle.remove()
    assert torch.equal(norm(before_norm[0]), trace.states[LAYERS])  # after the final norm, not before


@torch.no_grad()
@pytest.mark.parametrize("which", ["student", "teacher"])
def test_a_trace_gives_the_models_own_logits(pair, which, make_packed):
    model, batch = pair[which == "teacher"], make_packed()
    trace = record(model, batch)
    logits = model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    torch.testing.assert_close(nn.functional.linear(trace.hidden, trace.head_weight, trace.head_bias), logits)
    assert trace.states == {}


def test_only_what_was_asked_for_is_kept(pair, make_packed):
    trace = record(pair[0], make_packed(), Needs(states=frozenset({2, 0})))
    assert set(trace.states) == {0, 2}


def test_no_hook_stays_behind(pair, make_packed, monkeypatch):
    model = pair[0]
    before = hooks(model)
    record(model, make_packed(), ALL)
    assert hooks(model) == before
    monkeypatch.setattr(layers_of(model)[2], "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        record(model, make_packed(), ALL)
    assert hooks(model) == before


def test_the_students_head_is_its_quantized_one(pair, make_packed):
    student, _, _ = pair
    trace, head = record(student, make_packed()), student.lm_head
    assert isinstance(head, QuantLinear)
    assert torch.equal(trace.head_weight, head.weights.format.quantize(head.weight.detach()))
    assert torch.equal(
        trace.hidden,
        head.activations.format.quantize(record(student, make_packed(), ALL).states[LAYERS]),
    )


def test_gradients_reach_every_latent(pair, make_packed):
    student = pair[0]
    trace = record(student, make_packed(), Needs(states=frozenset({1})))
    ((trace.hidden @ trace.head_weight.T).square().mean() + trace.states[1].square().mean()).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    student.zero_grad()


def test_a_model_of_another_shape_is_said():
    class Odd(nn.Module):
        def get_decoder(self) -> nn.Module:
            return nn.Linear(1, 1)

    with pytest.raises(RazorError, match=r"Odd keeps its layers where.*decoder\.layers"):
        layers_of(Odd())  # type: ignore[arg-type]
