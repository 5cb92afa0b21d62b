"""Codes column by column, each column's error made up for by those to its right (GPTQ, arXiv 2210.17323).

The output of a linear layer is W x. Rounding one column of W errs by a multiple of that input, and inputs that go
together can take some of it over: if H = 2 X X^T is the Gram matrix of the inputs and U the upper Cholesky factor
of its inverse (H^-1 = U^T U), then after column c is rounded with error e, the columns to its right should change
by -e U[c, right] / U[c, c] (section 3.3 of the paper). What a group's scale is found from are these changed
weights, when its first column is reached. Rows know nothing of each other, so each may have its own format.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.quant import LearnedScale
from razor.quant.grouped import SCALE_RANGE

RIDGE = 1e-6
"""Added to the diagonal of the systems that give scales, in units of its mean."""

FARTHEST = 4.0
"""A scale may become so many times smaller when it is found again."""


@dataclass(frozen=True)
class Part:
    """Some rows of a matrix in one format.

    Attributes:
        format: bound to those rows; its scales here are those that plain rounding has.
        rows: their indices.
    """

    format: LearnedScale
    rows: Tensor


@dataclass(frozen=True)
class Solved:
    """What was found for a matrix [rows, columns].

    Attributes:
        weights: what each weight was when it was rounded, fp32.
        values: what it was rounded to, fp32.
        scales: [rows, groups] as stored, in fp32.
        shifts: [rows, groups], see `razor.quant.Grouped`.
    """

    weights: Tensor
    values: Tensor
    scales: Tensor
    shifts: Tensor


def inverse_factor(gram: Tensor, damping: float) -> Tensor:
    """U [columns, columns] in fp32, upper, with (gram + damping * mean of its diagonal)^-1 = U^T U.

    Raises:
        RazorError: the matrix holds what is no number, or damping is too small for it.
    """
    exact = (gram if gram.device.type != "mps" else gram.cpu()).double()
    mean = float(exact.diagonal().mean())
    eye = torch.eye(len(exact), dtype=exact.dtype, device=exact.device)
    exact = damped(exact, damping)
    # With the order of columns turned round, a lower factor L L^T is an upper one, R R^T; and (R R^T)^-1 = U^T U
    # for U = R^-1.
    lower, failed = torch.linalg.cholesky_ex(exact.flip(0, 1))
    if failed or not mean < float("inf"):
        raise RazorError(
            f"The inputs of a layer cannot be inverted with start.damping={damping:g}: try a larger one (0.01 is "
            "usual), or more start.rows."
        )
    upper = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
    return upper.float().to(gram.device)


def damped(gram: Tensor, damping: float) -> Tensor:
    """The Gram matrix with a part of its mean diagonal added there; the identity, if it is zero."""
    added = float(gram.diagonal().mean()) * damping or 1.0
    return gram + added * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)


def bounds_of(parts: Sequence[Part], weight: Tensor) -> tuple[Tensor, Tensor]:
    """[rows] lowest and [rows] highest code of a matrix's rows."""
    lowest, highest = weight.new_zeros(len(weight)), weight.new_zeros(len(weight))
    for part in parts:
        lowest[part.rows], highest[part.rows] = float(part.format.lowest), float(part.format.highest)
    return lowest, highest


def solve(weight: Tensor, parts: Sequence[Part], factor: Tensor, block: int) -> Solved:
    """Round a matrix.

    Args:
        weight: [rows, columns] fp32; not changed.
        parts: every row in one of them; all of the same group.
        factor: see `inverse_factor`.
        block: columns whose errors are handed on together to those beyond.
    """
    rows, columns = weight.shape
    group = parts[0].format.group
    size = columns if not isinstance(group, int) else group
    turned, values = weight.T.contiguous(), weight.new_empty(columns, rows)
    lowest, highest = bounds_of(parts, weight)
    scales, shifts = [], []
    scale = shift = lowest
    for start, stop in _spans(columns, size, block):
        errors = weight.new_empty(stop - start, rows)
        for column in range(start, stop):
            if column % size == 0:
                scale, shift = _fitted(parts, turned[column : column + size], column // size)
                scales.append(scale)
                shifts.append(shift)
            now, value = turned[column], values[column]
            # the formula of razor.quant.Grouped, with bounds of each row
            torch.div(now, scale, out=value).sub_(shift).round_()
            torch.clamp(value, lowest, highest, out=value).add_(shift).mul_(scale)
            torch.sub(now, value, out=errors[column - start]).div_(factor[column, column])
            if column + 1 < stop:
                turned[column + 1 : stop].addr_(
                    factor[column, column + 1 : stop], errors[column - start], alpha=-1
                )
        turned[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    return Solved(
        turned.T.contiguous(), values.T.contiguous(), torch.stack(scales, 1), torch.stack(shifts, 1)
    )


def refitted(weight: Tensor, found: Solved, parts: Sequence[Part], gram: Tensor) -> Solved:
    """The same codes with the scales that suit them best: the least |(W - Wq) X|^2 over all scales of a row.

    With its codes fixed, a row of Wq is linear in its scales, so these solve a small linear system. The codes were
    made with other scales, and one that would become far smaller than it was keeps its place.

    Args:
        weight: [rows, columns] fp32 that was to be met.
        found: codes and scales for it.
        parts: see `solve`.
        gram: X X^T of the inputs, up to a factor.
    """
    rows, groups = found.scales.shape
    size = weight.shape[1] // groups
    levels = (found.values / found.scales.repeat_interleave(size, 1)).unflatten(1, (groups, size))
    system = weight.new_empty(rows, groups, groups)
    for group in range(groups):
        seen = levels[:, group] @ gram[group * size : (group + 1) * size]
        system[:, group] = (seen.unflatten(1, (groups, size)) * levels).sum(-1)
    wanted = ((weight @ gram).unflatten(1, (groups, size)) * levels).sum(-1)
    diagonal = system.diagonal(dim1=1, dim2=2)
    idle = diagonal <= 0  # no level but zero: there is nothing to scale
    diagonal.add_(RIDGE * diagonal.mean(1, keepdim=True)).masked_fill_(idle, 1.0)
    scales = torch.linalg.solve(system.cpu().double(), wanted.cpu().double()).float().to(weight.device)
    scales = torch.where(idle | ~(scales > found.scales / FARTHEST), found.scales, scales)
    for part in parts:
        scales[part.rows] = part.format.rounded_scale(scales[part.rows])
    values = (levels * scales.unsqueeze(-1)).flatten(1)
    return Solved(found.weights, values, scales, found.shifts)


def _spans(columns: int, group: int, block: int) -> Iterator[tuple[int, int]]:
    """Blocks that begin and end with groups, or cut one into pieces: a group's scale wants all of it up to date."""
    step = max(group, block // group * group)
    for start in range(0, columns, step):
        end = min(start + step, columns)
        for begin in range(start, end, block):
            yield begin, min(begin + block, end)


def _fitted(parts: Sequence[Part], turned: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Scale and shift of each row for group `number`, from its weights [group, rows]."""
    scales, shifts = turned.new_empty(turned.shape[1]), turned.new_zeros(turned.shape[1])
    for part in parts:
        format = part.format
        assert format.log_scale is not None
        scale, zero = format.base.fit(turned.index_select(1, part.rows).T.contiguous().unsqueeze(1))
        scale, plain = format.rounded_scale(scale), format.log_scale.detach()[:, number].exp()
        # a group of zeros has no scale to find: that of plain rounding stays
        alive = scale > SCALE_RANGE[format.scale_dtype][0]
        scale = torch.where(alive, scale, format.rounded_scale(plain).unsqueeze(1))
        scales[part.rows] = scale.flatten()
        shifts[part.rows] = format.shift if zero is None else -zero.flatten()
    return scales, shifts
