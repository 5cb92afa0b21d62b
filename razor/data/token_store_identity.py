"""What a token store is of: all that shapes the tokens, and so names the folder.

The source with the sizes and times of its files or its revision, the tokenizer with its chat template, the version
of the recipe. A data set whose revision cannot be asked for now may have been read before; then its newest tokens
are what there is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from razor.data.sources.base import RecordSource
from razor.data.token_store import SHARD_TOKENS
from razor.storage import atomic_write, cache_dir, digest

VERSION = 1
"""To be raised when the same source and tokenizer come to make other tokens, or in another form."""

Identity = dict[str, Any]


def stores_folder() -> Path:
    """Where token stores lie."""
    return cache_dir() / "tokens"


def identity_of(source: RecordSource, tokenizer: Any) -> Identity:
    """Of the tokens of a source."""
    return {
        "version": VERSION,
        "source": source.identity(),
        "tokenizer": tokenizer_digest(tokenizer),
        "shard_tokens": SHARD_TOKENS,
    }


def store_folder(identity: Identity) -> Path:
    """The folder of an identity, made if missing, with a note of what its name stands for."""
    folder = stores_folder() / digest(identity)
    if not (folder / "source.json").is_file():
        with atomic_write(folder / "source.json") as temporary:
            temporary.write_text(json.dumps(identity) + "\n")
    return folder


def without_revision(identity: Identity) -> bool:
    """Whether nobody knows now which revision of a data set it is."""
    return identity["source"].get("revision", "") is None


def of_any_revision(identity: Identity) -> Iterator[Path]:
    """Folders that differ from an identity in their revision alone, newest first."""
    found = []
    for path in stores_folder().glob("*/source.json"):
        try:
            there = json.loads(path.read_text())
            there["source"]["revision"] = None
        except (ValueError, KeyError, TypeError):  # a damaged note says nothing
            continue
        if there == identity:
            found.append((path.stat().st_mtime, path.parent))
    return (folder for _, folder in sorted(found, reverse=True))


def tokenizer_digest(tokenizer: Any) -> str:
    """Of all that decides what tokens a text or a chat becomes."""
    if getattr(tokenizer, "is_fast", False):
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        rules |= {"padding": None, "truncation": None}  # set by the last call, and again by ours
    else:
        rules = sorted(tokenizer.get_vocab().items())
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, getattr(tokenizer, "chat_template", None)]
    return digest([type(tokenizer).__name__, rules, marks])
