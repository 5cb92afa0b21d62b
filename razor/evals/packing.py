"""Sequences in which all answers of a question share the question.

    tokens      q0 q1 q2 | a0 a1 | b0 b1 b2        two answers, their last token is never an input
    position     0  1  2 |  3  4 |  3  4  5        each answer continues the question
    attends to  q        | q, a  | q, b            no answer sees another: a 4-D mask

The position before an answer predicts its first token: that is q2 for both, so an answer of one
token adds nothing to the sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

BRANCH_TOKENS = 512
"""Answers share a sequence up to this many tokens: attention is quadratic, and a task whose rows
have no question at all (BOS only) would otherwise end in one endless sequence."""
MASK_BYTES = 2**28
"""Bound on the attention mask of a batch; cuts batches of very long rows."""

Request = tuple[Any, list[int], list[int]]
"""lm-eval's: (whatever names it, context tokens, continuation tokens)."""


@dataclass
class Row:
    """A context and the continuations to be scored after it.

    Attributes:
        context: [c] tokens, at least one.
        answers: (index of the request, its [n] continuation tokens).
    """

    context: list[int]
    answers: list[tuple[int, list[int]]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.context) + sum(len(tokens) - 1 for _, tokens in self.answers)


def share_contexts(requests: list[Request], max_length: int) -> list[Row]:
    """Gather requests with equal contexts into rows, longest first.

    A context too long for the model loses its left end, as in lm-eval.
    """
    rows: list[Row] = []
    latest: dict[tuple[int, ...], Row] = {}
    for index, (_, context, answer) in enumerate(requests):
        kept = (context + answer)[-(max_length + 1) :][: -len(answer)]
        row = latest.get(tuple(kept))
        used = len(row) - len(row.context) if row is not None else 0
        if row is None or used + len(answer) - 1 > BRANCH_TOKENS:
            row = latest[tuple(kept)] = Row(kept)
            rows.append(row)
        row.answers.append((index, answer))
    return sorted(rows, key=len, reverse=True)


def batches(rows: list[Row], size: int) -> Iterator[list[Row]]:
    """Chunks of at most `size` rows (longest first) whose mask stays within MASK_BYTES.

    A row is not padded to more than 1.5 times its length: one long row would otherwise cost more
    than the rest of its batch.
    """
    start = 0
    while start < len(rows):
        longest = len(rows[start])
        count = max(1, min(size, MASK_BYTES // longest**2))
        chunk = [row for row in rows[start : start + count] if 3 * len(row) >= 2 * longest]
        yield chunk
        start += len(chunk)


@dataclass
class Packed:
    """The tensors of a batch of B rows, padded on the right to T.

    Attributes:
        tokens, positions: [B, T] int64.
        branch: [B, T] int64: 0 in the context, k in the k-th answer, -1 on padding.
        where: [N] int64 into the flattened [B * T]: the position that predicts each scored token.
        targets: [N] int64 tokens.
        counts: scored tokens of each request, in the order of `requests`.
        requests: index of each request.
    """

    tokens: Tensor
    positions: Tensor
    branch: Tensor
    where: Tensor
    targets: Tensor
    counts: list[int]
    requests: list[int]

    def mask(self) -> Tensor:
        """[B, 1, T, T] bool, True where a query (dim 2) may look at a key (dim 3)."""
        query, key = self.branch[:, :, None], self.branch[:, None, :]
        return ((key == 0) | (key == query)).tril()[:, None]


def pack(rows: list[Row], device: torch.device) -> Packed:
    """Lay out a batch of rows the way the module's docstring draws it."""
    width = max(len(row) for row in rows)
    tokens, positions, branch = [], [], []
    where, targets, counts, requests = [], [], [], []
    for line, row in enumerate(rows):
        last = len(row.context) - 1  # this position predicts the first token of every answer
        ids, place, part = list(row.context), list(range(last + 1)), [0] * (last + 1)
        for number, (index, answer) in enumerate(row.answers, 1):
            steps = range(len(answer) - 1)
            where += [line * width + last, *(line * width + len(ids) + step for step in steps)]
            targets += answer
            counts.append(len(answer))
            requests.append(index)
            ids += answer[:-1]
            place += [last + 1 + step for step in steps]
            part += [number] * len(steps)
        padding = width - len(ids)
        tokens.append(ids + [0] * padding)
        positions.append(place + [0] * padding)
        branch.append(part + [-1] * padding)
    return Packed(
        tokens=torch.tensor(tokens, device=device),
        positions=torch.tensor(positions, device=device),
        branch=torch.tensor(branch, device=device),
        where=torch.tensor(where, device=device),
        targets=torch.tensor(targets, device=device),
        counts=counts,
        requests=requests,
    )
