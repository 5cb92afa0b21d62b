"""From Hugging Face's conventions to ours, once, and checked before any model runs.

Outside, labels stand at their own token and are shifted by the loss, padding is told by an attention mask,
and packed documents by position ids that restart. Inside, labels are shifted (`Batch`) and there is no
mask: *padding is one more document*. Position ids restart where it begins and where it ends, so attention
keeps it apart from the text exactly as it keeps packed documents apart, and its tokens can be anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.distill import IGNORE, Batch
from razor.errors import RazorError


def batch_of(
    input_ids: Tensor,
    labels: Tensor,
    vocabulary: int,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    documents: Tensor | None = None,
) -> Batch:
    """A `Batch` from tensors in Hugging Face's conventions, all [B, T].

    Args:
        input_ids: tokens.
        labels: the same tokens, -100 where there is no loss; not shifted. A document's first token has no
            position that could predict it, and padding never has a loss.
        vocabulary: number of tokens the model knows.
        attention_mask: 1 on text, 0 on padding on the left or right; None: no padding.
        position_ids: 0, 1, 2, ... for each document of a packed row; None: by `documents`, or a row is one.
        documents: index of the document at each token, any numbers, -1 on padding; None: by `position_ids`.

    Raises:
        RazorError: shapes, types or values that do not fit each other; the text names tensor and place.
    """
    given = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    given |= {"position_ids": position_ids, "documents": documents}
    for name, tensor in given.items():
        _check_tensor(name, tensor, input_ids)
    _check_tokens(input_ids, labels, vocabulary)
    real = _real(input_ids, attention_mask, documents)
    starts = _starts(real, position_ids, documents)
    if position_ids is None and documents is None:
        _check_sides(starts & real)
    positions = _since(starts)
    if position_ids is not None:
        _check_positions(position_ids, positions, real)
    numbers = (starts & real).flatten().cumsum(0).view_as(starts) - 1
    if documents is not None:
        _check_whole(documents, numbers, real)
    numbers = torch.where(real, numbers, -1)
    shifted = torch.full_like(labels, IGNORE, dtype=torch.long)
    within = real[:, 1:] & ~starts[:, 1:]  # the next token is text of the same document
    shifted[:, :-1] = torch.where(within, labels[:, 1:].long(), IGNORE)
    if (row := _first((shifted == IGNORE).all(1))) is not None:
        raise RazorError(
            f"labels: row {row} has no token with a loss. -100 and padding have none, nor has the first token "
            "of a document."
        )
    return Batch(input_ids.long(), shifted, positions, numbers)


def _check_tensor(name: str, tensor: Tensor | None, like: Tensor) -> None:
    if tensor is None:
        return
    if not isinstance(tensor, Tensor):
        raise RazorError(f"{name} must be a tensor, not {type(tensor).__name__}.")
    if tensor.ndim != 2 or tensor.shape != like.shape:
        raise RazorError(
            f"{name} has shape {list(tensor.shape)}; all inputs are [rows, tokens], like input_ids "
            f"{list(like.shape)}."
        )
    whole = not tensor.is_floating_point() and tensor.dtype != torch.bool
    if not whole and name != "attention_mask":
        raise RazorError(f"{name} has dtype {tensor.dtype}; it must be torch.int64.")
    if tensor.device != like.device:
        raise RazorError(f"{name} is on {tensor.device}, input_ids on {like.device}.")


def _check_tokens(input_ids: Tensor, labels: Tensor, vocabulary: int) -> None:
    if input_ids.shape[1] < 2:
        raise RazorError(
            f"input_ids has shape {list(input_ids.shape)}: a row needs two tokens to have a loss."
        )
    for name, tensor, wrong in (
        ("input_ids", input_ids, (input_ids < 0) | (input_ids >= vocabulary)),
        ("labels", labels, ((labels < 0) | (labels >= vocabulary)) & (labels != IGNORE)),
    ):
        if (place := _first(wrong.flatten())) is not None:
            value, allowed = int(tensor.flatten()[place]), " or -100" if name == "labels" else ""
            raise RazorError(f"{name} holds {value}; the model's tokens are 0..{vocabulary - 1}{allowed}.")


def _real(input_ids: Tensor, attention_mask: Tensor | None, documents: Tensor | None) -> Tensor:
    """[B, T] bool: what is not padding."""
    real = torch.ones_like(input_ids, dtype=torch.bool)
    if documents is not None:
        real = documents >= 0
    if attention_mask is None:
        return real
    if not ((attention_mask == 0) | (attention_mask == 1)).all():
        raise RazorError("attention_mask must hold 1 (text) and 0 (padding) alone.")
    if documents is not None and not torch.equal(attention_mask == 1, real):
        raise RazorError("attention_mask and documents disagree on what is padding (0 and -1).")
    return attention_mask == 1


def _starts(real: Tensor, position_ids: Tensor | None, documents: Tensor | None) -> Tensor:
    """[B, T] bool: where a document or a stretch of padding begins."""
    starts = torch.ones_like(real)
    starts[:, 1:] = real[:, 1:] != real[:, :-1]
    if documents is not None:
        starts[:, 1:] |= documents[:, 1:] != documents[:, :-1]
    if position_ids is not None:
        starts |= (position_ids == 0) & real
    return starts


def _since(starts: Tensor) -> Tensor:
    """[B, T] tokens since the last start."""
    index = torch.arange(starts.shape[1], device=starts.device).expand_as(starts)
    return index - torch.where(starts, index, 0).cummax(1).values


def _check_sides(text_starts: Tensor) -> None:
    if (row := _first(text_starts.sum(1) > 1)) is not None:
        raise RazorError(
            f"attention_mask: row {row} has padding between text. Pad on the left or right; documents packed "
            "into a row are told apart by position_ids or documents."
        )


def _check_positions(position_ids: Tensor, expected: Tensor, real: Tensor) -> None:
    if (place := _first(((position_ids != expected) & real).flatten())) is not None:
        row, column = divmod(place, real.shape[1])
        raise RazorError(
            f"position_ids[{row}, {column}] is {int(position_ids[row, column])} where "
            f"{int(expected[row, column])} follows: each document counts 0, 1, 2, ..."
        )


def _check_whole(documents: Tensor, numbers: Tensor, real: Tensor) -> None:
    """Raise if a document is in two pieces: as many (row, index) pairs as stretches are wanted."""
    rows = torch.arange(len(documents), device=documents.device).unsqueeze(1).expand_as(documents)
    pairs = torch.stack([rows[real], documents[real], numbers[real]], 1).unique(dim=0)
    same = (pairs[1:, :2] == pairs[:-1, :2]).all(1)
    if (place := _first(same)) is not None:
        raise RazorError(
            f"documents: document {int(pairs[place, 1])} of row {int(pairs[place, 0])} is in several pieces; a "
            "document's tokens stand together, and its position_ids restart only where it begins."
        )


def _first(wrong: Tensor) -> int | None:
    """Index of the first True of a vector."""
    places = wrong.nonzero()
    return int(places[0]) if len(places) else None
