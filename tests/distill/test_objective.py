"""A sum of losses: the right positions, the right means, the same step however it is accumulated."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, kl_divergence

from razor.cli import build, composed
from razor.distill import (
    EAKLD,
    IGNORE,
    AdaptiveFeatures,
    Batch,
    CrossEntropy,
    ForwardKL,
    Needs,
    Objective,
    Observation,
    ReverseKL,
    Shape,
    Trace,
)
from razor.errors import RazorError

LAYERS, WIDTH, VOCABULARY = 4, 12, 29
LENGTHS = ((9, 4), (6, 2), (13,), (3, 3, 5))
SHAPE = Shape("Toy", LAYERS, WIDTH, heads=1, kv_heads=1, head_dim=WIDTH)


def all_losses(**weights: float) -> Objective:
    chosen = {"task": 0.1, "kld": 1.0, "rkld": 0.5, "eakld": 2.0, "afd": 0.3} | weights
    losses: dict[str, Any] = {
        "task": CrossEntropy(),
        "kld": ForwardKL(),
        "rkld": ReverseKL(),
        "eakld": EAKLD(k=24),
        "afd": AdaptiveFeatures(top=2),
    }
    return fitted(losses, chosen)


def fitted(losses: dict[str, Any], weights: dict[str, Any]) -> Objective:
    objective = Objective(losses, weights)
    objective.fit(SHAPE, SHAPE)
    return objective


class Toy(nn.Module):
    """A model of tokens one by one, with hidden states 0..LAYERS."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, batch: Batch, layers: Any = range(LAYERS + 1)) -> Trace:
        states = [self.embedding(batch.input_ids)]
        for layer in self.layers:
            states.append(states[-1] + torch.tanh(layer(states[-1])))
        kept = {i: states[i] for i in layers}
        return Trace(states[-1], self.head.weight, self.head.bias, kept)


def step(
    objective: Objective, student: Toy, teacher: Toy, batch: Batch, seen: Observation | None = None
) -> Any:
    with torch.no_grad():
        reference = teacher(batch)
    own = objective.observe(reference, batch)
    if seen is not None:  # gamma and layers frozen to those of another batch
        own.facts, own.layers, own.needs = seen.facts, seen.layers, seen.needs
    seen = own
    return objective(student(batch, seen.needs.states), reference, batch, seen)


def by_hand(student: Trace, teacher: Trace, batch: Batch, seen: Observation) -> dict[str, float]:
    """Mean over documents of means over their tokens, one token at a time, in float64."""

    def distribution(trace: Trace, b: int, t: int) -> Categorical:
        logits = trace.hidden[b, t].double() @ trace.head_weight.double().T
        return Categorical(logits=logits + (0 if trace.head_bias is None else trace.head_bias.double()))

    gamma = seen.facts["eakld"]["gamma"]
    per_document: dict[int, list[list[float]]] = {}
    for b, t in (batch.labels != IGNORE).nonzero().tolist():
        q, p = distribution(student, b, t), distribution(teacher, b, t)
        forward, backward = float(kl_divergence(p, q)), float(kl_divergence(q, p))
        gaps = [(student.states[i][b, t] - teacher.states[i][b, t]).double() for i in seen.layers["afd"]]
        squares = sum(float(gap.square().mean()) for gap in gaps) / len(gaps)
        task = -float(q.log_prob(batch.input_ids[b, t + 1]))  # the token after it in the text
        values = [task, forward, backward, gamma * backward + (1 - gamma) * forward, squares]
        per_document.setdefault(int(batch.documents[b, t]), []).append(values)
    means = torch.tensor([torch.tensor(rows).mean(0).tolist() for rows in per_document.values()]).mean(0)
    return dict(zip(("task", "kld", "rkld", "eakld", "afd"), means.tolist(), strict=True))


@torch.no_grad()
def test_every_part_is_the_mean_over_documents_of_its_formula(make_batch):
    batch, objective = make_batch(LENGTHS), all_losses()
    student, teacher = Toy(0), Toy(1)
    seen = objective.observe(teacher(batch), batch)
    total, parts = objective(student(batch), teacher(batch), batch, seen)
    wanted = by_hand(student(batch), teacher(batch), batch, seen)
    assert set(parts) == set(wanted)
    for name, value in wanted.items():
        assert parts[name] == pytest.approx(value, rel=1e-4), name
    assert float(total) == pytest.approx(sum(objective.weights[n] * v for n, v in wanted.items()), rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("cap", ["batch", "token"])
def test_gamma_is_that_of_the_teachers_mean_entropy(make_batch, cap):
    batch, teacher = make_batch(LENGTHS), Toy(1)
    teacher.head.weight.mul_(4)  # some tokens below the ceiling, some above it
    objective = Objective({"e": EAKLD(k=12, cap=cap)}, {"e": 1})
    trace = teacher(batch)
    logits = (trace.hidden @ trace.head_weight.T + trace.head_bias).double()
    entropies = Categorical(logits=logits).entropy()
    ceiling = math.log(12)
    assert entropies[batch.valid].min() < ceiling < entropies[batch.valid].max()
    entropies = entropies.clamp(max=ceiling) if cap == "token" else entropies
    owners = batch.documents[batch.valid]
    means = [float(entropies[batch.valid][owners == d].mean()) for d in owners.unique()]
    wanted = min(1.0, max(0.0, 1 - sum(means) / len(means) / ceiling))
    assert 0 < wanted < 1
    assert objective.observe(trace, batch).facts["e"]["gamma"] == pytest.approx(wanted, rel=1e-4)


def test_gamma_at_its_ends_gives_the_pure_divergences(make_batch, make_trace):
    batch = make_batch(LENGTHS)
    student, certain, uniform = make_trace(batch, 1), make_trace(batch, 2), make_trace(batch, 3)
    objective = all_losses(afd=0.0)
    certain.hidden = certain.hidden * 1000
    uniform.hidden = uniform.hidden * 0.01
    for teacher, gamma, same in ((certain, 1, "rkld"), (uniform, 0, "kld")):
        seen = objective.observe(teacher, batch)
        assert seen.facts["eakld"]["gamma"] == pytest.approx(gamma, abs=0.01)
        seen.facts["eakld"]["gamma"] = gamma
        parts = objective(student, teacher, batch, seen)[1]
        assert parts["eakld"] == pytest.approx(parts[same], rel=1e-5)


@pytest.mark.parametrize("name", ["task", "kld", "rkld", "eakld", "afd"])
def test_a_loss_looks_at_just_the_positions_that_predict_an_answer(make_batch, make_trace, name):
    batch = make_batch(LENGTHS, prompt=2)
    student, teacher = make_trace(batch, 1), make_trace(batch, 2)
    full = all_losses()
    objective = Objective({name: full.losses[name]}, {name: 1.0})
    seen = objective.observe(teacher, batch)
    total, _ = objective(student, teacher, batch, seen)
    total.backward()
    touched = torch.zeros_like(batch.valid)
    for state in (student.hidden, *student.states.values()):
        if state.grad is not None:
            touched |= state.grad.abs().sum(-1) > 0
    assert torch.equal(touched, batch.valid)
    before = float(total.detach())
    with torch.no_grad():
        for trace in (student, teacher):
            for state in trace.states.values():
                state[~batch.valid] += 7.0
    again, _ = objective(student, teacher, batch, seen)
    assert float(again.detach()) == before


def test_the_first_answer_token_is_learned_and_nothing_after_the_last(make_batch):
    batch = make_batch(
        [[7]], prompt=2, columns=9
    )  # tokens 0 1 2 | 3 4 5 6: position 2 predicts the first answer
    assert batch.valid[0].tolist() == [False, False, True, True, True, True, False, False, False]
    assert batch.labels[0, 2:6].tolist() == batch.input_ids[0, 3:7].tolist()


def test_a_long_document_counts_no_more_than_a_short_one(make_batch, make_trace):
    batch = make_batch([[13], [3]], prompt=0)
    objective, teacher = Objective({"kld": ForwardKL()}, {"kld": 1.0}), make_trace(batch, 2)
    student = make_trace(batch, 1)

    def without(document: int) -> float:
        labels = batch.labels.masked_fill(batch.documents == document, IGNORE)
        alone = replace(batch, labels=labels)
        return float(objective(student, teacher, alone, objective.observe(teacher, alone))[0].detach())

    both = float(objective(student, teacher, batch, objective.observe(teacher, batch))[0].detach())
    assert both == pytest.approx((without(0) + without(1)) / 2, rel=1e-5)


def test_nothing_to_learn_is_a_zero_that_can_be_differentiated(make_batch):
    batch = make_batch([[2, 1], [3]], prompt=5)
    assert batch.tokens == 0
    student, teacher = Toy(0), Toy(1)
    total, parts = step(all_losses(), student, teacher, batch)
    assert float(total.detach()) == 0 and set(parts.values()) == {0.0}
    total.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert gradients and all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["kld", "rkld", "eakld", "afd"])
def test_a_student_that_is_its_teacher_has_no_loss(make_batch, name):
    batch, student = make_batch(LENGTHS), Toy(0)
    full = all_losses()
    objective = Objective({name: full.losses[name]}, {name: 1.0})
    total, parts = step(objective, student, student, batch)
    assert parts[name] == 0
    total.backward()
    assert max(float(p.grad.abs().max()) for p in student.parameters() if p.grad is not None) < 1e-7


def together(batches: list[Batch]) -> Batch:
    """The micro-batches as one batch."""
    offset, owners = 0, []
    for batch in batches:
        owners.append(torch.where(batch.documents >= 0, batch.documents + offset, -1))
        offset += int(batch.documents.max()) + 1
    fields = {
        name: torch.cat([getattr(batch, name) for batch in batches])
        for name in ("input_ids", "labels", "position_ids")
    }
    return Batch(**fields, documents=torch.cat(owners))


def gradients(model: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_an_accumulated_step_is_the_step_of_one_large_batch(make_batch):
    """With gamma and layers frozen; the micro-batches hold 2, 2, 1 and 3 documents, and one has no loss."""
    batches = [make_batch([lengths], seed=seed) for seed, lengths in enumerate(LENGTHS)]
    batches.append(make_batch([[2, 1]], prompt=4))
    counts = [len(batch.documents[batch.valid].unique()) for batch in batches]
    for batch, count in zip(batches, counts, strict=True):
        batch.share = count / (sum(counts) / len(counts))
    whole, objective, teacher = together(batches), all_losses(), Toy(1)
    with torch.no_grad():
        seen = objective.observe(teacher(whole), whole)

    one, many = Toy(0), Toy(0)
    large, large_parts = step(objective, one, teacher, whole, seen)
    large.backward()
    accumulated, parts = torch.zeros(()), dict.fromkeys(large_parts, 0.0)
    for batch in batches:
        value, own = step(objective, many, teacher, batch, seen)
        (value * batch.share / len(batches)).backward()
        accumulated += value.detach() * batch.share / len(batches)
        parts = {name: parts[name] + own[name] * batch.share / len(batches) for name in parts}
    torch.testing.assert_close(accumulated, large.detach(), rtol=1e-5, atol=1e-6)
    assert parts == pytest.approx(large_parts, rel=1e-4)
    for got, wanted in zip(gradients(many), gradients(one), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)


def test_the_student_records_just_the_chosen_layers(make_batch):
    batch, objective, teacher = make_batch(), all_losses(), Toy(1)
    seen = objective.observe(teacher(batch), batch)
    assert objective.teacher_needs() == Needs(states=frozenset(range(LAYERS + 1)))
    assert len(seen.layers["afd"]) == 2 and seen.needs == Needs(states=frozenset(seen.layers["afd"]))
    assert seen.compared == seen.needs
    with pytest.raises(RazorError, match=r"'afd' needs states of layer .*nobody recorded"):
        objective(Toy(0)(batch, []), teacher(batch), batch, seen)


@torch.no_grad()
def test_padding_decides_about_no_layer(make_batch, make_trace):
    batch, objective, teacher = make_batch(LENGTHS), all_losses(), make_trace(make_batch(LENGTHS), 1)
    padding = batch.documents < 0
    assert padding.sum() > 5
    before = objective.observe(teacher, batch).layers
    for index, state in teacher.states.items():  # as busy as can be at a layer that is quiet elsewhere
        state[padding] = 100.0 * (-1) ** (index == min(set(range(1, LAYERS)) - set(before["afd"])))
    assert objective.observe(teacher, batch).layers == before


def test_a_weight_of_zero_drops_the_loss(make_batch):
    batch, student, teacher = make_batch(), Toy(0), Toy(1)
    plain = all_losses(kld=0, rkld=0, eakld=0, afd=0)
    assert not plain.needs_teacher and plain.teacher_needs() == Needs()
    total, parts = plain(student(batch, []), None, batch, plain.observe(None, batch))
    assert set(parts) == {"task"} and float(total.detach()) == pytest.approx(0.1 * parts["task"])
    no_entropy = all_losses(eakld=0)
    assert no_entropy.observe(teacher(batch), batch).facts == {}
    assert all_losses(task=0).needs_teacher and all_losses(task=0, kld=0, rkld=0, eakld=0).needs_teacher


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"a": 1, "b": 1, "kdl": 1}, r"names 'kdl'.*Choices: a, b"),
        ({"a": 1}, r"lacks a weight for 'b' \(distill\.weights\.b="),
        ({"a": 1, "b": -0.5}, r"distill\.weights\.b=-0\.5 must be 0 or more"),
        ({"a": 1, "b": float("nan")}, "must be 0 or more"),
        ({"a": 0, "b": 0.0}, "is 0: there is nothing to minimise"),
    ],
)
def test_bad_weights(weights, words):
    with pytest.raises(RazorError, match=words):
        Objective({"a": CrossEntropy(), "b": ForwardKL()}, weights)


@pytest.mark.parametrize("name", ["kld", "rkld", "eakld"])
def test_a_missing_teacher_is_said(make_batch, name):
    batch, full = make_batch(), all_losses()
    objective = Objective({name: full.losses[name]}, {name: 1.0})
    with pytest.raises(RazorError, match=f"losses {name} need a teacher"):
        objective(Toy(0)(batch), None, batch, Observation())


def test_features_without_a_teacher_are_said(make_batch):
    batch, objective = make_batch(), Objective({"afd": AdaptiveFeatures(2)}, {"afd": 1.0})
    with pytest.raises(RazorError, match="'afd' compares layers, but no teacher"):
        objective(Toy(0)(batch), None, batch, Observation())


@pytest.mark.parametrize(
    ("distill", "weights"),
    [
        ("eakld_afd", {"task": 0.1, "eakld": 2.0, "afd": 0.1}),
        ("eakld", {"task": 0.1, "eakld": 2.0}),
        ("kld", {"kld": 1.0}),
        ("rkld", {"rkld": 1.0}),
        ("ce", {"task": 1.0}),
    ],
)
def test_shipped_objectives_compute(make_batch, distill, weights):
    objective = build(composed("train", [f"distill={distill}", "model=tiny_llama"]).distill)
    objective.fit(SHAPE, SHAPE)
    assert objective.weights == weights and objective.needs_teacher == (distill != "ce")
    total, parts = step(objective, Toy(0), Toy(1), make_batch())
    assert total.isfinite() and total > 0 and set(parts) == set(weights)
