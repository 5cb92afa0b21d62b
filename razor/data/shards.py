"""The texts a teacher wrote, in numbered shards: all documents end to end, and how much of each was generated.

A shard is whole or not there (`checked.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from razor.data.checked import check, save_checked, shard_path
from razor.data.document import Document
from razor.errors import RazorError

logger = logging.getLogger(__name__)


def save_shard(folder: Path, number: int, documents: Sequence[Document], generated: Sequence[int]) -> None:
    """Write shard `number`; `generated` counts the tokens the teacher wrote of each document."""
    sizes = [len(document) for document in documents]
    empty = np.zeros(0, dtype=np.int32)
    tensors: dict[str, np.ndarray] = {
        "tokens": np.concatenate([empty, *(document.tokens for document in documents)]).astype(np.int32),
        "response": np.concatenate([empty, *(document.response for document in documents)]).astype(np.uint8),
        "offsets": np.cumsum([0, *sizes]).astype(np.int64),
        "generated": np.array(generated, dtype=np.int32),
    }
    save_checked(shard_path(folder, number), tensors, documents=len(documents), tokens=sum(sizes))


def load_shard(folder: Path, number: int) -> tuple[list[Document], list[int]] | None:
    """Documents and generated counts of shard `number`, or None if it has to be made.

    A damaged shard is said in one line and counts as not there.
    """
    data = shard_path(folder, number)
    try:
        if check(data) is None:
            return None
    except RazorError as error:
        logger.warning("%s It is made again.", error)
        return None
    tensors = load_file(data)
    cuts = tensors["offsets"][1:-1]
    tokens = np.split(tensors["tokens"], cuts)
    response = np.split(tensors["response"].astype(np.bool_), cuts)
    generated = tensors["generated"].tolist()
    documents = [Document(*pair) for pair in zip(tokens, response, strict=True)]
    return documents[: len(generated)], generated
