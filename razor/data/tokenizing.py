"""Records become tokens, in several processes, in the order of the records.

Records are taken in blocks of about a million characters; a process tokenizes a block at a time, and blocks come
back in their order. So what comes out depends on the records alone, not on how many processes there were. Each
uses one thread, few blocks are under way at a time, and a source that ends soon is tokenized in this very process:
starting others takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from razor.data.sources.base import Record, RecordSource
from razor.errors import RazorError

BLOCK_CHARACTERS = 1 << 20
BLOCK_RECORDS = 1024
SOON = 8
"""Blocks that are waited for before other processes are started."""

AHEAD = 3
"""Blocks under way, for each process."""


@dataclass(frozen=True)
class Block:
    """What some records became.

    Attributes:
        tokens: int32 [n], all documents end to end.
        response: bool [n], see `Document`.
        sizes: int32 [documents].
        records: number of records, also those without a document.
        characters: of these, about.
        left_out: records that a tolerant source left out.
        first: the error of the first of them.
    """

    tokens: NDArray[np.int32]
    response: NDArray[np.bool_]
    sizes: NDArray[np.int32]
    records: int
    characters: int
    left_out: int = 0
    first: str = ""


def check_workers(workers: int | None) -> None:
    """Raise RazorError unless `workers` is a number of processes or None."""
    if workers is not None and (type(workers) is not int or workers < 1):
        raise RazorError(
            f"data.workers={workers} must be a whole number, at least 1, or null for one a core."
        )


def tokenized(
    source: RecordSource, tokenizer: Any, records: Iterable[Record], workers: int | None = None
) -> Generator[Block, None, None]:
    """Blocks of tokens, in order.

    Args:
        source: makes documents of its records.
        tokenizer: a Transformers tokenizer.
        records: of the source.
        workers: processes; 1: none but this one; None: one a core if the records last.

    Raises:
        RazorError: a record makes no document, or a process was killed.
    """
    check_workers(workers)
    waiting = blocks_of(records)
    count = workers or _cores()
    soon = list(islice(waiting, SOON if workers is None else 0))
    if count == 1 or (workers is None and len(soon) < SOON):
        for block in chain(soon, waiting):
            yield encode(source, tokenizer, block)
        return
    yield from _in_processes(source, tokenizer, chain(soon, waiting), count)


def blocks_of(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Records in lists of about a million characters."""
    block: list[Record] = []
    characters = 0
    for record in records:
        block.append(record)
        characters += _characters(record)
        if characters >= BLOCK_CHARACTERS or len(block) >= BLOCK_RECORDS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def encode(source: RecordSource, tokenizer: Any, records: list[Record]) -> Block:
    """Tokenize some records."""
    documents = []
    left_out: list[str] = []
    for where, record in records:
        try:
            documents += [document for document in source.encode(tokenizer, record, where) if len(document)]
        except RazorError as error:
            if not source.tolerant:
                raise
            left_out.append(str(error))
    return Block(
        tokens=np.concatenate([np.zeros(0, np.int32), *(document.tokens for document in documents)]),
        response=np.concatenate([np.zeros(0, np.bool_), *(document.response for document in documents)]),
        sizes=np.array([len(document) for document in documents], dtype=np.int32),
        records=len(records),
        characters=sum(map(_characters, records)),
        left_out=len(left_out),
        first=left_out[0] if left_out else "",
    )


def _characters(record: Record) -> int:
    value = record[1]
    return len(value) if isinstance(value, str) else len(str(value))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_processes(
    source: RecordSource, tokenizer: Any, blocks: Iterator[list[Record]], count: int
) -> Iterator[Block]:
    # spawned: a fork of a process with threads, such as one that has used torch, may hang
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(source, tokenizer)
    )
    under_way: deque[Future[Block]] = deque()
    try:
        while True:
            for block in islice(blocks, AHEAD * count - len(under_way)):
                under_way.append(pool.submit(_work, block))
            if not under_way:
                return
            yield under_way.popleft().result()
    except BrokenProcessPool as error:
        raise RazorError(
            "A process that tokenizes has ended: there may be too little memory (lower data.workers), or it was "
            'started by a script whose code is not under `if __name__ == "__main__":` (data.workers=1 starts none).'
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_own: tuple[RecordSource, Any] | None = None


def _begin(source: RecordSource, tokenizer: Any) -> None:
    """In a new process: one thread, no own answer to Ctrl-C, and an end with its parent, however that ends."""
    global _own
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _own = (source, tokenizer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(records: list[Record]) -> Block:
    assert _own is not None
    return encode(*_own, records)
