"""How tokens relate to each other, compared between two models without the matrix of all pairs.

MiniLMv2 (arXiv 2012.15828, eq. 2-3) turns a set of vectors, one for each token and head, into distributions:
token t relates to token s by softmax_s(a_t . a_s / sqrt(d)). Queries, keys and values each give such relations,
and since they live between tokens, models of any width have them alike. Here token t relates to the tokens of its
own document up to itself, the ones that a causal model lets it see; the patches of an image all see each other.

Those are heads x T x T numbers. They are made for a few query tokens at a time, in fp32, forward and again
backward, where the gradient of KL(teacher || student) with respect to the student's scores is simply the
difference of the two distributions. What is kept between is nothing but the vectors themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from razor.distill.batch import Samples
from razor.distill.head import wide
from razor.distill.pieces import pieces

CHUNK_BYTES = {"cpu": 8 * 2**20}
"""Target size of the relations of one chunk by device type; three tensors of this size exist at a time."""

CHUNK_BYTES_ELSEWHERE = 128 * 2**20


def relation_kl(student: Tensor, teacher: Tensor, batch: Samples, chunk: int | None = None) -> Tensor:
    """KL(teacher || student) of each valid token's relations, [n] nats, the mean over heads.

    Args:
        student: [B, heads, T, any width] vectors; the gradient goes to them.
        teacher: [B, heads, T, any width], as many heads.
        batch: which tokens are valid, and which documents they belong to.
        chunk: bytes of the relations made at a time; by default what suits the device.
    """
    size = CHUNK_BYTES.get(student.device.type, CHUNK_BYTES_ELSEWHERE) if chunk is None else chunk
    heads, tokens = student.shape[1:3]
    chunks = list(_chunks(batch, 4 * heads * tokens, size))
    values: Tensor = _RelationKL.apply(student, teacher, chunks, batch.documents)
    return values


@dataclass(frozen=True)
class _Chunk:
    """Some valid tokens of a row and the stretch of the row that holds all they relate to."""

    part: slice
    """Which of the n valid tokens."""
    row: int
    queries: Tensor
    """[m] their columns."""
    keys: slice
    causal: bool = True

    def log_relations(self, vectors: Tensor, documents: Tensor) -> Tensor:
        """[heads, m, keys] log-probabilities, about -3e38 where a token sees nothing."""
        rows = vectors[self.row]
        queries, keys = wide(rows[:, self.queries]), wide(rows[:, self.keys])
        scores = queries @ keys.mT
        scores *= queries.shape[-1] ** -0.5
        owners = documents[self.row]
        columns = torch.arange(self.keys.start, self.keys.stop, device=owners.device)
        seen = owners[self.queries, None] == owners[None, self.keys]
        if self.causal:
            seen &= columns <= self.queries[:, None]
        return scores.masked_fill_(~seen, torch.finfo(scores.dtype).min).log_softmax(-1)


def _chunks(batch: Samples, token_bytes: int, target: int) -> Iterator[_Chunk]:
    valid, documents, done = batch.valid.cpu(), batch.documents.cpu(), 0
    for row in range(len(valid)):
        columns = valid[row].nonzero().flatten()
        for piece in pieces(len(columns), token_bytes, target):
            here = columns[piece]  # in order, and so are documents: what the first one sees begins first
            first = int((documents[row] == documents[row, here[0]]).nonzero()[0])
            last = here[-1] if batch.causal else (documents[row] == documents[row, here[-1]]).nonzero()[-1]
            part, keys = slice(done + piece.start, done + piece.stop), slice(first, int(last) + 1)
            yield _Chunk(part, row, here.to(batch.labels.device), keys, batch.causal)
        done += len(columns)


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, chunks: list[_Chunk], documents: Tensor
    ) -> Tensor:
        values = wide(student[:0]).new_zeros(chunks[-1].part.stop if chunks else 0)
        for chunk in chunks:
            gap = chunk.log_relations(teacher, documents)
            weight = gap.exp()
            gap -= chunk.log_relations(student, documents)
            values[chunk.part] = (weight.mul_(gap)).sum(-1).mean(0)
        ctx.save_for_backward(student, teacher)
        ctx.chunks, ctx.documents = chunks, documents
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher = ctx.saved_tensors
        total = torch.zeros_like(student, dtype=wide(student[:0]).dtype)
        scale = student.shape[-1] ** -0.5 / student.shape[1]
        for chunk in ctx.chunks:
            scores = chunk.log_relations(student, ctx.documents).exp_()
            scores -= chunk.log_relations(teacher, ctx.documents).exp_()
            scores *= (gradients[0][chunk.part] * scale).unsqueeze(-1)
            rows, sums = student[chunk.row], total[chunk.row]
            sums.index_add_(1, chunk.queries, scores @ wide(rows[:, chunk.keys]))
            sums[:, chunk.keys] += scores.mT @ wide(rows[:, chunk.queries])
        return total.to(student.dtype), None, None, None
