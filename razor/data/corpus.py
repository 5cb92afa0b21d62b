"""What a run trains on and what it is scored on, kept apart.

Held-out documents are chosen by the seed before anything is packed, and no training document equals
one of them. They are scored by perplexity and by the KL divergence to the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from razor.data.document import Document
from razor.data.packing import PackedRows, check_length, fit, pack
from razor.data.sources.base import Teacher, TextSource
from razor.errors import RazorError


@dataclass(frozen=True)
class Corpus:
    """Packed rows to train on, and packed rows to score on.

    `held_out.batches(n)` gives the latter n rows at a time.
    """

    train: PackedRows
    held_out: PackedRows

    @classmethod
    def build(
        cls,
        source: TextSource,
        tokenizer: Any,
        sequence_length: int,
        held_out: int = 48,
        seed: int = 0,
        model_max_length: int | None = None,
        teacher: Teacher | None = None,
    ) -> Corpus:
        """Read the source, split, pack.

        Args:
            source: where the documents come from.
            tokenizer: a Transformers tokenizer.
            sequence_length: tokens per row.
            held_out: documents to score on (pieces of at most `sequence_length` tokens where text
                was cut).
            seed: chooses them, and decides how rows are packed.
            model_max_length: the model's `max_position_embeddings`; None if it has no limit.
            teacher: for sources whose text the teacher writes.

        Raises:
            RazorError: rows longer than the model allows, no documents, or none left to train on.
        """
        check_sequence_length(sequence_length, model_max_length)
        if held_out < 0:
            raise RazorError(f"data.held_out={held_out} must not be negative.")
        documents = fit(source.documents(tokenizer, teacher), sequence_length)
        if not documents:
            raise RazorError("The data source gave no document with a token to learn.")
        if held_out >= len(documents):
            raise RazorError(
                f"data.held_out={held_out} leaves nothing to train on: the source gave "
                f"{len(documents)} documents. "
                "Lower data.held_out or give more data."
            )
        train, scored = split(documents, held_out, seed)
        if not train:
            raise RazorError("Every training document also is a held-out one: the data repeats itself.")
        pad_id = _pad_id(tokenizer)
        return cls(
            train=pack(train, sequence_length, pad_id, seed),
            held_out=pack(scored, sequence_length, pad_id, seed),
        )


def check_sequence_length(sequence_length: int, model_max_length: int | None) -> None:
    """Raise RazorError if rows would be longer than the model can read, or too short to learn from.

    Cheap: call it before a model is loaded.
    """
    check_length(sequence_length)
    if model_max_length is not None and sequence_length > model_max_length:
        raise RazorError(
            f"data.sequence_length={sequence_length} is longer than the model allows "
            f"(max_position_embeddings={model_max_length}): choose at most {model_max_length}."
        )


def split(documents: list[Document], held_out: int, seed: int) -> tuple[list[Document], list[Document]]:
    """(train, held out): a seeded choice; copies of a held-out document are in neither."""
    order = np.random.default_rng([seed, 1]).permutation(len(documents))
    scored = [documents[which] for which in sorted(order[:held_out].tolist())]
    secret = {document.key() for document in scored}
    train = [document for document in documents if document.key() not in secret]
    return train, scored


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
