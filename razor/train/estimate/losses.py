"""Bytes that the losses hold: chunks of logits, and what was recorded of layers."""

from __future__ import annotations

from razor.distill import Objective
from razor.distill.attention_relations import AttentionRelations
from razor.distill.loss import LayerLoss
from razor.distill.pieces import BLOCK_BYTES, BLOCK_BYTES_ELSEWHERE, KEPT_BYTES, chunk_bytes
from razor.distill.relations import CHUNK_BYTES, CHUNK_BYTES_ELSEWHERE
from razor.train.estimate.case import Case
from razor.train.estimate.facts import Facts

BLOCKS = 6
"""Blocks of fp32 log-probabilities that exist at a time (see `distill/pieces.py`)."""


def loss_bytes(case: Case, facts: Facts) -> tuple[int, int]:
    """While logits are made, and of that what stays until the backward pass.

    n tokens, all taken to have a loss, V words, logits in the compute dtype of e bytes, made in chunks of c tokens:

        teacher's logits        e n V if they fit `KEPT_BYTES`, else e c V
        what rounding lost      e c V, in 16 bits only
        student's logits        e c V, or as many chunks as fit `KEPT_BYTES` in 16 bits; they become their gradient
        blocks of fp32          6 x at most `BLOCK_BYTES`
        hidden states           e n width of each model
        gradients               e V width of the head and e n width of hidden states: these stay
    """
    own, e, n = facts.student, case.item, case.tokens
    row = e * own.vocabulary
    most = max(1, chunk_bytes(case.device, e) // row)
    chunk, half = -(-n // -(-n // most)), e == 2
    many = max(1, KEPT_BYTES // (chunk * row)) if half else 1
    total = min(n, many * chunk) * row + e * n * own.width
    if case.taught:
        total += n * row if n * row <= KEPT_BYTES else chunk * row
        total += chunk * row if half else 0
        total += e * n * facts.teacher.width
    block = min(chunk * 4 * own.vocabulary, BLOCK_BYTES.get(case.device, BLOCK_BYTES_ELSEWHERE))
    total += BLOCKS * max(block, 4 * own.vocabulary)
    kept = e * own.width * (own.vocabulary + n)
    return total + kept, kept


def recorded_bytes(case: Case, facts: Facts) -> int:
    """What losses on layers hold at the end of the student's forward pass, of both models.

    A pair of hidden states: e tokens width each, unless autograd keeps the student's anyway, and their difference
    in fp32. Attention inputs: the teacher's (the student's are kept anyway), and three chunks of relations in fp32.
    """
    theirs, total, chunks = facts.teacher, 0, 0
    for loss in _layer_losses(case.objective):
        many = min(getattr(loss, "top", None) or len(loss.teacher_layers()), theirs.layers + 1)
        if loss.record == "states":
            total += many * (facts.saved.state + case.tokens * theirs.width * (case.item + 4))
        elif isinstance(loss, AttentionRelations):
            total += many * case.item * case.tokens * theirs.attention
            chunks = 3 * CHUNK_BYTES.get(case.device, CHUNK_BYTES_ELSEWHERE)
    return total + chunks


def recorded_before(case: Case, facts: Facts) -> int:
    """What is recorded of the teacher while it is not yet known which layers are compared."""
    theirs, total = facts.teacher, 0
    for loss in _layer_losses(case.objective):
        if case.taught and loss.needs_teacher and loss.record != "routers":
            width = theirs.width if loss.record == "states" else theirs.attention
            total += case.item * case.tokens * width * len(loss.teacher_layers())
    return total


def _layer_losses(objective: Objective) -> list[LayerLoss]:
    return [loss for loss in objective.losses.values() if isinstance(loss, LayerLoss)]
