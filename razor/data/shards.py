"""Documents on disk in numbered shards that are whole or not there.

A shard is a safetensors file with all documents end to end, and a JSON beside it with the SHA-256
of that file. The JSON is written last, so its presence says that the shard is complete, and its
checksum says that it still is.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from razor.data.document import Document
from razor.storage import atomic_write, file_digest

logger = logging.getLogger(__name__)


def save_shard(folder: Path, number: int, documents: Sequence[Document], generated: Sequence[int]) -> None:
    """Write shard `number`; `generated` counts the tokens the teacher wrote of each document."""
    data, note = _paths(folder, number)
    note.unlink(missing_ok=True)  # an old checksum must not vouch for new data
    sizes = [len(document) for document in documents]
    empty = np.zeros(0, dtype=np.int32)
    tensors: dict[str, np.ndarray] = {
        "tokens": np.concatenate([empty, *(document.tokens for document in documents)]).astype(np.int32),
        "response": np.concatenate([empty, *(document.response for document in documents)]).astype(np.uint8),
        "offsets": np.cumsum([0, *sizes]).astype(np.int64),
        "generated": np.array(generated, dtype=np.int32),
    }
    with atomic_write(data) as temporary:
        temporary.write_bytes(save(tensors))  # not save_file: a full disk must be an OSError
    facts = {"sha256": file_digest(data), "documents": len(documents), "tokens": sum(sizes)}
    with atomic_write(note) as temporary:
        temporary.write_text(json.dumps(facts) + "\n")


def load_shard(folder: Path, number: int) -> tuple[list[Document], list[int]] | None:
    """Documents and generated counts of shard `number`, or None if it has to be made.

    A damaged shard is said in one line and counts as not there.
    """
    data, note = _paths(folder, number)
    if not note.exists():
        return None
    try:
        if json.loads(note.read_text())["sha256"] != file_digest(data):
            raise ValueError("its checksum does not match")
        tensors = load_file(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("The cached file '%s' is damaged (%s): it is made again.", data, error)
        return None
    cuts = tensors["offsets"][1:-1]
    tokens = np.split(tensors["tokens"], cuts)
    response = np.split(tensors["response"].astype(np.bool_), cuts)
    generated = tensors["generated"].tolist()
    documents = [Document(*pair) for pair in zip(tokens, response, strict=True)]
    return documents[: len(generated)], generated


def _paths(folder: Path, number: int) -> tuple[Path, Path]:
    return folder / f"shard_{number:05d}.safetensors", folder / f"shard_{number:05d}.json"
