"""Hugging Face's tensors in, a loss out: equal to ours on batches, to a naive one, and to rows without padding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import razor
from razor.cli import composed, model_source
from razor.distill import Batch, Objective
from razor.distiller import Distiller
from razor.errors import RazorError
from razor.models import record

INT4, INT8 = ({"kind": "Integer", "width": width, "group": 32} for width in (4, 8))
QUANT = {
    "weights": {"kind": "RowMix", "high": INT4, "low": {"kind": "Ternary", "group": 32}, "fraction": 0.5},
    "embedding": INT4,
    "activations": INT8,
    "kv_cache": {"kind": "Integer", "width": 8, "group": 16},
}
DISTILL = {
    "losses": {
        "task": {"kind": "CrossEntropy"},
        "eakld": {"kind": "EAKLD", "k": 400},  # so many that the random teacher's gamma is not clipped
        "afd": {"kind": "AdaptiveFeatures", "top": 2},
    },
    "weights": {"task": 0.1, "eakld": 2.0, "afd": 0.5},
}
RECIPE = {"name": "test", "compute_dtype": "float32", "quant": QUANT, "distill": DISTILL}
TASK = {"losses": {"task": {"kind": "CrossEntropy"}}, "weights": {"task": 1.0}}
VOCABULARY = 272


@pytest.fixture(scope="module")
def teacher() -> Any:
    return model_source(composed("size", ["model=tiny_llama"])).load(torch.float32)


@pytest.fixture(scope="module")
def student(teacher: Any) -> Any:
    return razor.quantize(copy.deepcopy(teacher), RECIPE)


@pytest.fixture
def distiller(student: Any, teacher: Any) -> Distiller:
    return Distiller(RECIPE, student, teacher)


def tokens(rows: int = 2, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(texts: list[Tensor], side: str, filler: Tensor, width: int) -> dict[str, Tensor]:
    """input_ids, attention_mask, labels of texts padded with `filler` tokens on a side."""
    rows = []
    for text in texts:
        gap = width - len(text)
        real = [torch.zeros(gap), torch.ones(len(text))]
        ids = [filler[:gap], text]
        if side == "right":
            real, ids = real[::-1], ids[::-1]
        rows.append((torch.cat(ids), torch.cat(real).long()))
    ids, mask = (torch.stack(part) for part in zip(*rows, strict=True))
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.clone()}


def gradients(model: Any, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([gradient.flatten() for gradient in found if gradient is not None])


def steps_by_hand(
    objective: Objective, student: Any, teacher: Any, batch: Batch
) -> tuple[Tensor, dict[str, Any]]:
    """What a training step was before it was one call."""
    with torch.no_grad():
        observed = record(teacher, batch, objective.teacher_needs())
    seen = objective.observe(observed, batch)
    loss, parts = objective(record(student, batch, seen.needs), observed, batch, seen)
    named: dict[str, Any] = {f"loss/{name}": value for name, value in parts.items()}
    named |= seen.statistics | {"eakld/gamma": seen.facts["eakld"]["gamma"]}
    return loss, named | {f"afd/layer_{rank}": float(layer) for rank, layer in enumerate(seen.layers["afd"])}


def test_equals_the_steps_by_hand_bit_for_bit(distiller: Distiller, student: Any, teacher: Any) -> None:
    ids, position_ids = tokens(), torch.cat([torch.arange(10), torch.arange(14)]).expand(2, 24)
    labels = torch.where(torch.arange(24) % 5 == 0, -100, ids)
    shifted = torch.full_like(labels, -100)
    shifted[:, :-1] = labels[:, 1:]
    shifted[:, 9] = -100  # the next token begins another document
    documents = torch.tensor([[0] * 10 + [1] * 14, [2] * 10 + [3] * 14])
    expected, named = steps_by_hand(
        distiller.objective, student, teacher, Batch(ids, shifted, position_ids, documents)
    )
    loss, parts = distiller(input_ids=ids, labels=labels, position_ids=position_ids)
    assert torch.equal(loss, expected) and parts == named
    assert torch.equal(gradients(student, loss), gradients(student, expected))
    again, _ = distiller(Batch(ids, shifted, position_ids, documents))
    assert torch.equal(again, expected)
    other, _ = distiller(input_ids=ids, labels=labels, documents=documents)
    assert torch.equal(other, expected)


def test_equals_a_naive_loss_on_whole_logits(distiller: Distiller, student: Any, teacher: Any) -> None:
    """Everything again from the formulas, on logits as Transformers makes them."""
    texts = [tokens(1, 9, 1)[0], tokens(1, 21, 2)[0]]
    given = padded(texts, "right", torch.full((30,), 7), 24)
    loss, parts = distiller(**given)

    rows = []
    for text in texts:  # one by one, no padding
        with torch.no_grad():
            expected = teacher(input_ids=text[None], output_hidden_states=True, use_cache=False)
        found = student(input_ids=text[None], output_hidden_states=True, use_cache=False)
        rows.append((expected, found, text[1:]))
    teacher_logp = [F.log_softmax(e.logits[0, :-1].float(), -1) for e, _, _ in rows]
    entropy = sum(-(p.exp() * p).sum(-1).mean() for p in teacher_logp) / 2
    gamma = float(1 - entropy / math.log(400))
    assert 0 < gamma < 1 and parts["eakld/gamma"] == pytest.approx(gamma, rel=1e-5)

    states = [torch.cat([e.hidden_states[i][0] for e, _, _ in rows]) for i in range(5)]
    similarity = [float(F.cosine_similarity(states[i], states[i - 1], dim=-1).mean()) for i in range(1, 5)]
    layers = sorted(range(1, 5), key=lambda i: similarity[i - 1])[:2]
    assert [parts["afd/layer_0"], parts["afd/layer_1"]] == layers

    total = torch.zeros(())
    for (expected, found, labels), p in zip(rows, teacher_logp, strict=True):
        q = F.log_softmax(found.logits[0, :-1].float(), -1)
        task = F.cross_entropy(found.logits[0, :-1].float(), labels)
        reverse, forward = (q.exp() * (q - p)).sum(-1).mean(), (p.exp() * (p - q)).sum(-1).mean()
        gaps = [(found.hidden_states[i] - expected.hidden_states[i])[0, :-1].square().mean() for i in layers]
        own = 0.1 * task + 2 * (gamma * reverse + (1 - gamma) * forward) + 0.5 * sum(gaps) / 2
        total = total + own / 2
    torch.testing.assert_close(loss, total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradients(student, loss), gradients(student, total), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(distiller: Distiller, student: Any, side: str) -> None:
    """Neither what it holds nor that it is there, for loss and gradient."""
    texts = [tokens(1, n, n)[0] for n in (3, 24, 17)]
    one, other = (
        padded(texts, side, torch.randint(0, VOCABULARY, (30,)), 24 if side == "left" else 30)
        for _ in range(2)
    )
    assert not torch.equal(one["input_ids"], other["input_ids"])
    loss, parts = distiller(**one)
    again, same = distiller(**other)
    assert torch.equal(loss, again) and parts == same
    assert torch.equal(gradients(student, loss), gradients(student, again))

    rows = [distiller(input_ids=text[None], labels=text[None])[1] for text in texts]
    task = sum(row["loss/task"] for row in rows) / 3  # gamma and layers are of the batch: only this adds up
    assert parts["loss/task"] == pytest.approx(task, rel=1e-5)
    packed = torch.cat(texts)[None]
    positions = torch.cat([torch.arange(len(text)) for text in texts])[None]
    dense, found = distiller(input_ids=packed, labels=packed, position_ids=positions)
    torch.testing.assert_close(dense, loss, rtol=1e-5, atol=1e-6)
    assert found == pytest.approx(parts, rel=1e-4)


def test_labels_on_padding_are_none(distiller: Distiller) -> None:
    texts = [tokens(1, n, n)[0] for n in (5, 12)]
    given = padded(texts, "right", torch.full((30,), 3), 14)
    silent = given | {"labels": torch.where(given["attention_mask"] == 0, -100, given["labels"])}
    assert torch.equal(distiller(**given)[0], distiller(**silent)[0])


def test_masks_of_any_kind(distiller: Distiller) -> None:
    given = padded([tokens(1, 9)[0], tokens(1, 12)[0]], "left", torch.full((30,), 3), 12)
    expected, _ = distiller(**given)
    for dtype in (torch.bool, torch.float32, torch.int32):
        found, _ = distiller(**given | {"attention_mask": given["attention_mask"].to(dtype)})
        assert torch.equal(found, expected)
    whole = {"input_ids": tokens(), "labels": tokens()}
    full = whole | {"attention_mask": torch.ones_like(tokens())}
    assert torch.equal(distiller(**whole)[0], distiller(**full)[0])
    short = {key: value.to(torch.int32) for key, value in whole.items()}
    assert torch.equal(distiller(**whole)[0], distiller(**short)[0])


def test_no_logits_are_made_that_can_be_avoided(
    distiller: Distiller, student: Any, teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's forward never runs, and with feature losses alone nothing of the vocabulary's size is made."""
    heads = [model.get_output_embeddings() for model in (student, teacher)]
    hooks = [head.register_forward_hook(lambda *_: pytest.fail("the head ran")) for head in heads]
    try:
        distiller(input_ids=tokens(), labels=tokens())
        made: list[int] = []
        linear = F.linear
        monkeypatch.setattr(F, "linear", lambda x, w, b=None: made.append(w.shape[0]) or linear(x, w, b))
        alone = {"losses": {"afd": DISTILL["losses"]["afd"]}, "weights": {"afd": 1.0}}  # type: ignore[index]
        loss, _ = Distiller({"name": "x", "distill": alone}, student, teacher)(
            input_ids=tokens(), labels=tokens()
        )
        assert loss > 0 and made and VOCABULARY not in made
    finally:
        for hook in hooks:
            hook.remove()


def test_a_teacher_only_where_one_is_needed(student: Any, teacher: Any) -> None:
    alone = Distiller({"name": "x", "distill": TASK}, student)
    ids = tokens()
    loss, parts = alone(input_ids=ids, labels=ids)
    assert alone.teacher is None and {name for name in parts if name.startswith("loss/")} == {"loss/task"}
    assert Distiller({"name": "x", "distill": TASK}, student, teacher).teacher is None
    expected = F.cross_entropy(student(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        RazorError, match=r"The losses eakld, afd need a teacher: Distiller\(recipe, student, teacher\)"
    ):
        Distiller(RECIPE, student)


def test_the_teacher_is_frozen(student: Any, teacher: Any) -> None:
    own = copy.deepcopy(teacher).train().requires_grad_(True)
    found = Distiller(RECIPE, student, own)
    assert found.teacher is own and not own.training and not any(p.requires_grad for p in own.parameters())


def test_models_that_do_not_fit(student: Any, teacher: Any) -> None:
    with pytest.raises(RazorError, match=r"are one model.*copy\.deepcopy\(model\)"):
        Distiller(RECIPE, student, student)

    def other(*words: str) -> Any:
        return model_source(composed("size", ["model=tiny_llama", *words])).load(torch.float32)

    with pytest.raises(RazorError, match=r"The student has 272 tokens, the teacher 280"):
        Distiller(RECIPE, student, other("model.architecture.vocab_size=280"))
    shallow = other("model.architecture.num_hidden_layers=2")
    assert (
        Distiller(RECIPE, student, shallow)(input_ids=tokens(), labels=tokens())[0] > 0
    )  # any depth will do
    narrow = other("model.architecture.hidden_size=32")
    with pytest.raises(RazorError, match=r"'afd': hidden states of .* 64 wide, .* 32: projection=linear"):
        Distiller(RECIPE, student, narrow)
    small = Distiller(
        {"name": "x", "distill": {"losses": {"k": {"kind": "ForwardKL"}}, "weights": {"k": 1}}},
        student,
        narrow,
    )
    assert small(input_ids=tokens(), labels=tokens())[0] > 0  # distributions alone need no equal width
    with pytest.raises(RazorError, match="The loss 'afd': top=9, but LlamaForCausalLM has 4 layers"):
        Distiller(
            Objective.from_spec(
                {"losses": {"afd": {"kind": "AdaptiveFeatures", "top": 9}}, "weights": {"afd": 1}}
            ),
            student,
            teacher,
        )
    with pytest.raises(RazorError, match=r"not a DataParallel \(of a wrapper: wrapper\.module\)"):
        Distiller(RECIPE, torch.nn.DataParallel(student), teacher)  # type: ignore[arg-type]
    with pytest.raises(RazorError, match="'x' has no distill section"):
        Distiller({"name": "x", "quant": QUANT}, student, teacher)


IDS = tokens(2, 6)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"input_ids": None}, "input_ids is missing"),
        ({"labels": None}, r"labels is missing\. labels is input_ids with -100"),
        ({"input_ids": IDS.to("meta")}, "input_ids is on meta, the student on cpu"),
        ({"batch": "ready"}, "Give a Batch or tensors by name, not both"),
        ({"labels": IDS[:, :-1]}, r"labels has shape \[2, 5\]"),
        ({"labels": IDS + 30}, r"labels holds \d+; the model's tokens are 0\.\.271 or -100"),
    ],
)
def test_inputs_that_do_not_fit(
    distiller: Distiller, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], words: str
) -> None:
    """One line each, before any model runs (more of them in test_distiller_inputs.py)."""
    monkeypatch.setattr("razor.distiller.distiller.record", lambda *_: pytest.fail("a model ran"))
    with pytest.raises(RazorError, match=words):
        distiller(**{"input_ids": IDS, "labels": IDS} | given)


def test_a_loop_of_ones_own_learns(teacher: Any) -> None:
    student = razor.quantize(copy.deepcopy(teacher), RECIPE).train().requires_grad_(True)
    distiller = Distiller(RECIPE, student, teacher)
    optimizer = torch.optim.AdamW(razor.parameter_groups(student, learning_rate=3e-3, weight_decay=0.01))
    values = []
    for _ in range(15):
        loss, _ = distiller(input_ids=tokens(), labels=tokens())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
    assert values[-1] < 0.7 * values[0]


def test_the_module_of_the_main_job_is_this_one(
    teacher: Any, student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from razor.train.module import DistillModule
    from razor.train.settings import TrainSettings

    objective = Objective.from_spec(DISTILL)
    module = DistillModule(student, teacher, objective, TrainSettings(accelerator="cpu"), 3)
    called: list[Callable[..., Any]] = []
    monkeypatch.setattr(Distiller, "loss", lambda self, batch: called.append(self) or (batch, {}))
    module.loss("batch")  # type: ignore[arg-type]
    assert called == [module.distiller]
