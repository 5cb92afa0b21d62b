"""Make the token store of a source, or what is missing of it.

Its folder, `<cache>/tokens/<hash>`, is named by all that shapes the tokens (`token_store_identity.py`). A shard's
note says which records went into it, so a run that was stopped goes on after the last whole shard, and a damaged
one is made again from its records alone. A lock lets one process write; others that want the same wait for it.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from razor.data.alone import alone
from razor.data.checked import Facts, check, save_checked, shard_path
from razor.data.document import Document
from razor.data.sources.base import PATIENCE, RecordSource, say_left_out
from razor.data.token_store import SHARD_TOKENS, TokenStore
from razor.data.token_store_identity import (
    VERSION,
    Identity,
    identity_of,
    of_any_revision,
    store_folder,
    stores_folder,
    without_revision,
)
from razor.data.tokenizing import Block, tokenized
from razor.errors import RazorError
from razor.storage import require_space
from razor.terminal import progress_bar

logger = logging.getLogger(__name__)

BYTES_PER_TOKEN = 4
"""Of text, about; for the disk to be asked for."""

MB = 1_000_000


def token_store(source: RecordSource, tokenizer: Any, workers: int | None = None) -> TokenStore:
    """The tokens of a source, made now as far as they are not there.

    Args:
        source: what to read.
        tokenizer: a Transformers tokenizer.
        workers: processes that tokenize; None: one a core, if the text is long.

    Raises:
        RazorError: the source cannot be read or gives nothing, a record is no good, or the disk is full.
    """
    identity = identity_of(source, tokenizer)
    if without_revision(identity):
        if store := _read_before(identity):
            logger.warning("The hub is out of reach: its text is taken from '%s', read before.", store.folder)
            return store
        source.check()  # says why
    folder = store_folder(identity)
    with alone(folder):
        notes = _make(folder, source, tokenizer, workers)
    if left_out := sum(note["left_out"] for note in notes):
        say_left_out(left_out, next(note["first_left_out"] for note in notes if note["left_out"]))
    return TokenStore(folder, notes)


def read_before(source: RecordSource, tokenizer: Callable[[], Any]) -> bool:
    """Whether there are tokens of a data set that is out of reach now."""
    if source.identity().get("revision", "") is not None or not any(stores_folder().glob("*/source.json")):
        return False
    return _read_before(identity_of(source, tokenizer())) is not None


def _read_before(identity: Identity) -> TokenStore | None:
    for folder in of_any_revision(identity):
        notes = list(_notes(folder))
        if notes and notes[-1]["last"]:
            return TokenStore(folder, notes)
    return None


def stored(documents: Sequence[Document], tokenizer: Any) -> TokenStore:
    """Documents that are in memory as a store, named by their content."""
    documents = [document for document in documents if len(document)]
    tokens = np.concatenate([np.zeros(0, np.int32), *(document.tokens for document in documents)])
    response = np.concatenate([np.zeros(0, np.bool_), *(document.response for document in documents)])
    sizes = np.array([len(document) for document in documents], dtype=np.int32)
    block = Block(tokens, response, sizes, len(documents), 0)
    sums = [hashlib.sha256(part.tobytes()).hexdigest() for part in (tokens, np.packbits(response), sizes)]
    identity = {
        "version": VERSION,
        "source": {"kind": "documents", "sums": sums},
        "vocabulary": len(tokenizer),
    }
    folder = store_folder(identity)
    with alone(folder):
        note = _whole(folder, 0, 0) or _save(folder, 0, [block], 0, True, len(tokenizer))
    return TokenStore(folder, [note])


def _make(folder: Path, source: RecordSource, tokenizer: Any, workers: int | None) -> list[Facts]:
    """Notes of all shards, those that are missing or damaged made now."""
    for half in folder.glob(".shard_*"):  # of a process that was killed as it wrote
        shutil.rmtree(half, ignore_errors=True)
    notes = list(_notes(folder))
    while not (notes and notes[-1]["last"]):
        with closing(_written(folder, source, tokenizer, workers, notes)) as written:
            for note in written:
                notes.append(note)
                if not note["last"] and _whole(folder, len(notes), note["records"]):
                    break  # what follows is there: only this part was missing
        notes += _notes(folder, notes)
    return notes


def _notes(folder: Path, before: Sequence[Facts] = ()) -> Iterator[Facts]:
    """Notes of the whole shards after `before`, up to the first that is not."""
    number, position = len(before), before[-1]["records"] if before else 0
    last = bool(before) and before[-1]["last"]
    while not last:
        note = _whole(folder, number, position)
        if note is None:
            return
        yield note
        number, position, last = number + 1, note["records"], note["last"]


def _whole(folder: Path, number: int, position: int) -> Facts | None:
    """The note of a shard that is whole and begins at record `position`; None if it has to be made."""
    try:
        note = check(shard_path(folder, number))
    except RazorError as error:
        logger.warning("%s It is made again.", error)
        return None
    return note if note is not None and note["begin"] == position else None


def _written(
    folder: Path, source: RecordSource, tokenizer: Any, workers: int | None, before: Sequence[Facts]
) -> Generator[Facts, None, None]:
    """Make shard after shard; gives their notes."""
    number, position = len(before), before[-1]["records"] if before else 0
    vocabulary, size = len(tokenizer), source.size()
    if size is not None and not before:
        width = _token_type(vocabulary)().itemsize + 1 / 8
        require_space(folder, int(size / BYTES_PER_TOKEN * width), "the tokenized text", "RAZOR_CACHE=...")
    records = islice(source.records(), position, None)
    done = sum(note["characters"] for note in before)
    # records are counted where nobody knows how many there are
    bar = progress_bar(
        "tokenize",
        None if size is None else max(size // MB, 1),
        "record" if size is None else "MB",
        position if size is None else done // MB,
        hidden=size is not None and size < MB,
    )
    with bar, closing(tokenized(source, tokenizer, records, workers)) as blocks:
        for part, last in _full(_counted(blocks, bar, size is None, done), source, not before):
            note = _save(folder, number, part, position, last, vocabulary)
            yield note
            number, position = number + 1, note["records"]


def _counted(blocks: Iterator[Block], bar: Any, by_record: bool, done: int) -> Iterator[Block]:
    started, tokens = time.perf_counter(), 0
    for block in blocks:
        done += block.characters
        tokens += len(block.tokens)
        bar.set_postfix({"tok/s": f"{tokens / (time.perf_counter() - started):,.0f}"}, refresh=False)
        bar.update(block.records if by_record else done // MB - bar.n)
        yield block


def _full(
    blocks: Iterator[Block], source: RecordSource, beginning: bool
) -> Iterator[tuple[list[Block], bool]]:
    """Blocks of a shard each, and whether it is the last."""
    part: list[Block] = []
    documents = left_out = 0
    for block in blocks:
        if part and sum(len(other.tokens) for other in part) >= SHARD_TOKENS:
            yield part, False
            part = []
        part.append(block)
        documents += len(block.sizes)
        left_out += block.left_out
        if beginning and not documents and left_out >= PATIENCE:
            raise RazorError(next(block.first for block in part if block.first))
    if beginning and not documents:
        first = next((block.first for block in part if block.first), None)
        raise RazorError(first) if first else source.empty()
    yield part, True


def _save(
    folder: Path, number: int, part: Sequence[Block], position: int, last: bool, vocabulary: int
) -> Facts:
    none = [np.zeros(0, dtype=np.int32)]
    sizes = np.concatenate([*none, *(block.sizes for block in part)])
    kind = _token_type(vocabulary)
    tokens = np.concatenate([none[0].astype(kind), *(block.tokens.astype(kind) for block in part)])
    response = np.concatenate([np.zeros(0, dtype=np.bool_), *(block.response for block in part)])
    tensors = {
        "tokens": tokens,
        "response": np.packbits(response),
        "offsets": np.cumsum([0, *sizes.tolist()], dtype=np.uint32),
    }
    return save_checked(
        shard_path(folder, number),
        tensors,
        tokens=len(tokens),
        documents=len(sizes),
        begin=position,
        records=position + sum(block.records for block in part),
        characters=sum(block.characters for block in part),
        left_out=sum(block.left_out for block in part),
        first_left_out=next((block.first for block in part if block.first), ""),
        last=last,
    )


def _token_type(vocabulary: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32
