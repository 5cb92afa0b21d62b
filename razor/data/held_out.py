"""Which documents are scored on, not trained on, and what is said when they cannot be set apart."""

from __future__ import annotations

import numpy as np

from razor.data.document import Document
from razor.errors import RazorError


def split(documents: list[Document], held_out: int, seed: int) -> tuple[list[Document], list[Document]]:
    """(train, held out): a seeded choice; copies of a held-out document are in neither."""
    order = np.random.default_rng([seed, 1]).permutation(len(documents))
    scored = [documents[which] for which in sorted(order[:held_out].tolist())]
    secret = {document.key() for document in scored}
    train = [document for document in documents if document.key() not in secret]
    return train, scored


def check_enough(documents: int, held_out: int) -> None:
    """Raise RazorError unless documents are left when `held_out` of them are set apart."""
    if held_out < 0:
        raise RazorError(f"data.held_out={held_out} must not be negative.")
    if not documents:
        raise RazorError("The data source gave no document with a token to learn.")
    if held_out >= documents:
        raise RazorError(
            f"data.held_out={held_out} leaves nothing to train on: the source gave {documents} documents. "
            "Lower data.held_out or give more data."
        )


def only_copies() -> RazorError:
    """What is left are copies of held-out documents."""
    return RazorError("Every training document also is a held-out one: the data repeats itself.")
