"""What a run trains on and what it is scored on, kept apart.

Held-out documents are chosen by the seed before anything is packed, and no training document equals
one of them. They are scored by perplexity and by the KL divergence to the teacher.

**Two ways.** A little text is read, tokenized and packed in memory, every time. Text that is read record by record
and may be large, and every mix, is tokenized once to disk (`token_store_write.py`) and laid out in rows there
(`layout_write.py`); memory then does not grow with it. The interface of the rows is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from razor.data.document import Document
from razor.data.held_out import check_enough, only_copies, split
from razor.data.layout_write import LaidOut, lay_out
from razor.data.packing import PackedRows, check_length, fit, pack
from razor.data.reading import Reading
from razor.data.rows import Rows
from razor.data.sources.base import RecordSource, Teacher, TextSource
from razor.data.sources.source_mix import MixPart, SourceMix
from razor.data.token_store import TokenStore
from razor.data.token_store_write import read_before, stored, token_store
from razor.errors import RazorError
from razor.processes import rank

SMALL = 64_000_000
"""Bytes of text that are held in memory without a thought."""

DEFAULT = Reading()


@dataclass(frozen=True)
class Corpus:
    """Rows to train on, and rows to score on: packed text or images.

    `held_out.batches(n)` gives the latter n rows at a time.
    """

    train: Rows
    held_out: Rows

    @property
    def text(self) -> PackedRows:
        """The rows to train on, for what works on text alone.

        Raises:
            RazorError: they are images, or hold some.
        """
        if not isinstance(self.train, PackedRows):
            raise RazorError("Cached targets and start=gptq are of text, and this is something else.")
        return self.train

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
        reading: Reading = DEFAULT,
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
            reading: on disk or in memory, packed or not, in which order.

        Raises:
            RazorError: rows longer than the model allows, no documents, or none left to train on.
        """
        check_sequence_length(sequence_length, model_max_length)
        if held_out < 0:
            check_enough(1, held_out)
        pad_id = _pad_id(tokenizer)

        def rows(documents: list[Document]) -> PackedRows:
            return pack(documents, sequence_length, pad_id, seed, reading.pack, reading.bucketed)

        if _large(source) if reading.on_disk is None else reading.on_disk:
            mix = source if isinstance(source, SourceMix) else SourceMix({"all": {"source": source}})
            stores = [_store(part.source, tokenizer, teacher, reading.workers) for part in mix.parts]
            laid = lay_out(stores, mix.wanted, mix.describe(), sequence_length, held_out, seed, reading.pack)
            if mix is source and rank() == 0:
                print(mix.tell(laid.used, laid.available), file=sys.stderr)
            return cls(_stored_rows(laid, sequence_length, pad_id, reading), rows(laid.held_out))
        if isinstance(source, SourceMix):
            raise RazorError("A mix is weighed on disk: leave out data.on_disk=false.")
        documents = fit(source.documents(tokenizer, teacher), sequence_length)
        check_enough(len(documents), held_out)
        train, scored = split(documents, held_out, seed)
        if not train:
            raise only_copies()
        return cls(train=rows(train), held_out=rows(scored))


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


def check_source(source: TextSource, tokenizer: Callable[[], Any]) -> None:
    """Find, before anything heavy runs, what would make reading fail; cheap.

    Args:
        source: of the text.
        tokenizer: gives it; asked only if the source is out of reach, for then its tokens may be there.

    Raises:
        RazorError: a file, a data set or the network is not there.
    """
    for part in source.parts if isinstance(source, SourceMix) else [MixPart("", source, None)]:
        try:
            part.source.check()
        except RazorError as error:
            if isinstance(part.source, RecordSource) and read_before(part.source, tokenizer):
                continue
            raise RazorError(
                f"In the part '{part.name}' of the mix: {error}" if part.name else str(error)
            ) from error


def _large(source: TextSource) -> bool:
    """Whether text may be more than memory should hold."""
    if isinstance(source, RecordSource):
        size = source.size()
        return size is None or size > SMALL
    return isinstance(source, SourceMix)


def _store(source: TextSource, tokenizer: Any, teacher: Teacher | None, workers: int | None) -> TokenStore:
    if isinstance(source, RecordSource):
        return token_store(source, tokenizer, workers)
    return stored(source.documents(tokenizer, teacher), tokenizer)


def _stored_rows(laid: LaidOut, sequence_length: int, pad_id: int, reading: Reading) -> PackedRows:
    return PackedRows(
        documents=laid.layout.pieces,
        rows=laid.layout,
        sequence_length=sequence_length,
        pad_id=pad_id,
        filled=reading.pack,
        bucketed=reading.bucketed,
    )


def _pad_id(tokenizer: Any) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0
