"""Held-out perplexity and KL against the same numbers worked out from whole logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from razor.data.document import Document
from razor.data.packing import pack
from razor.distill import Batch
from razor.evals.held_out import HeldOut, score_held_out


def batches(rows_per_batch: int = 2, documents: int = 9) -> list[Batch]:
    chance = np.random.default_rng(0)
    made = []
    for _ in range(documents):
        size = int(chance.integers(5, 30))
        response = np.arange(size) >= size // 3
        made.append(Document(chance.integers(0, 256, size).astype(np.int32), response))
    return list(pack(made, 32, pad_id=256).batches(rows_per_batch))


def by_hand(student: Any, teacher: Any, scored: list[Batch]) -> dict[str, float]:
    """Every document on its own, no packing, no chunks, in double precision."""
    entropy, divergence, same, tokens = 0.0, 0.0, 0, 0
    for batch in scored:
        for document in range(int(batch.documents.max()) + 1):
            here = batch.documents == document
            labels = batch.labels[here]
            ids = batch.input_ids[here][None]
            with torch.no_grad():
                logp, of = (
                    F.log_softmax(m(input_ids=ids).logits[0].double(), -1) for m in (student, teacher)
                )
            for place in (labels != -100).nonzero().flatten().tolist():
                entropy -= float(logp[place, labels[place]])
                divergence += float((of[place].exp() * (of[place] - logp[place])).sum())
                same += int(logp[place].argmax() == of[place].argmax())
                tokens += 1
    return {
        "perplexity": math.exp(entropy / tokens),
        "kl": divergence / tokens,
        "agreement": 100 * same / tokens,
        "tokens": tokens,
    }


@pytest.fixture
def pair(tiny_student: Callable[..., Any]) -> tuple[Any, Any]:
    from razor.models import make_student

    _, plan, _, teacher = tiny_student("w1p58", "tiny_qwen3", "quant.activations=none", "quant.kv_cache=none")
    teacher = teacher.float()  # float32, in which two orders of summing are close
    return make_student(teacher, plan, torch.float32), teacher


def test_equals_whole_logits(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    found = score_held_out(student, teacher, batches())
    expected = by_hand(student.eval(), teacher, batches())
    assert found.to_dict() == pytest.approx(expected, rel=1e-4)
    assert found.kl > 0.01 and found.agreement < 100


def test_does_not_depend_on_how_rows_are_batched(pair: tuple[Any, Any]) -> None:
    one, many = (score_held_out(*pair, batches(rows)) for rows in (1, 4))
    assert one.to_dict() == pytest.approx(many.to_dict(), rel=1e-5)


def test_a_teacher_agrees_with_itself(pair: tuple[Any, Any]) -> None:
    _, teacher = pair
    found = score_held_out(teacher, teacher, batches())
    assert found.kl == pytest.approx(0, abs=1e-6) and found.agreement == 100
    assert found.perplexity == pytest.approx(by_hand(teacher, teacher, batches())["perplexity"], rel=1e-4)


def test_leaves_the_student_as_it_was(pair: tuple[Any, Any]) -> None:
    student, teacher = pair
    before = {name: value.clone() for name, value in student.state_dict().items()}
    for training in (True, False):
        student.train(training)
        score_held_out(student, teacher, batches(documents=2))
        assert student.training is training
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for parameter in student.parameters()) and torch.is_grad_enabled()


def test_hopeless_text_has_a_large_perplexity_and_no_overflow() -> None:
    assert HeldOut(math.exp(min(1e9, 700.0)), 0.0, 0.0, 1).perplexity < math.inf
