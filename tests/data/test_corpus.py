from __future__ import annotations

import numpy as np
import pytest

from razor.data.corpus import Corpus
from razor.data.document import Document
from razor.data.packing import StoredRows
from razor.data.reading import Reading
from razor.data.sources.base import TextSource
from razor.data.sources.source_mix import SourceMix
from razor.errors import RazorError

from .given_source import GivenTexts


class Given(TextSource):
    def __init__(self, documents):
        self.given = documents

    def documents(self, tokenizer, teacher=None):
        return self.given


def numbered(count, size=6):
    return [Document(np.full(size, i), np.ones(size, dtype=bool)) for i in range(count)]


def keys(rows):
    return {document.key() for document in rows.documents}


def test_split_is_disjoint_complete_and_seeded(chat_tokenizer):
    source = Given(numbered(30))
    corpus = Corpus.build(source, chat_tokenizer, 16, held_out=7, seed=3)
    assert len(corpus.held_out.documents) == 7 and len(corpus.train.documents) == 23
    assert not keys(corpus.train) & keys(corpus.held_out)
    assert keys(Corpus.build(source, chat_tokenizer, 16, 7, 3).held_out) == keys(corpus.held_out)
    assert keys(Corpus.build(source, chat_tokenizer, 16, 7, 4).held_out) != keys(corpus.held_out)
    assert corpus.train.pad_id == chat_tokenizer.pad_token_id
    assert sum(len(batch.input_ids) for batch in corpus.held_out.batches(2)) == len(corpus.held_out)


def test_copies_of_held_out_documents_are_not_trained_on(chat_tokenizer):
    corpus = Corpus.build(Given(numbered(10) * 3), chat_tokenizer, 16, held_out=3)
    assert not keys(corpus.train) & keys(corpus.held_out)


def test_one_long_file_is_enough(chat_tokenizer):
    text = Document(np.arange(1000), np.ones(1000, dtype=bool))
    corpus = Corpus.build(Given([text]), chat_tokenizer, 16, held_out=5)
    assert len(corpus.held_out.documents) == 5
    assert corpus.train.targets + corpus.held_out.targets == 999


def test_nothing_held_out(chat_tokenizer):
    assert len(Corpus.build(Given(numbered(3)), chat_tokenizer, 16, held_out=0).held_out) == 0


@pytest.mark.parametrize(
    ("size", "large"), [(1000, False), (64_000_000, False), (64_000_001, True), (None, True)]
)
def test_large_or_unknown_text_goes_to_disk(chat_tokenizer, monkeypatch, size, large):
    source = GivenTexts([f"text {n}" for n in range(30)])
    monkeypatch.setattr(source, "size", lambda: size)
    corpus = Corpus.build(source, chat_tokenizer, 32, 3)
    assert isinstance(corpus.train.rows, StoredRows) == large
    for on_disk in (True, False):
        corpus = Corpus.build(source, chat_tokenizer, 32, 3, reading=Reading(on_disk=on_disk))
        assert isinstance(corpus.train.rows, StoredRows) == on_disk
        assert len(corpus.train.documents) == 27


def test_a_mix_lies_on_disk(chat_tokenizer):
    mix = SourceMix({"a": {"source": Given(numbered(30))}})
    assert isinstance(Corpus.build(mix, chat_tokenizer, 32, 3).train.rows, StoredRows)
    with pytest.raises(RazorError, match="on_disk=false"):
        Corpus.build(mix, chat_tokenizer, 32, 3, reading=Reading(on_disk=False))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"workers": 0}, r"data\.workers=0"),
        ({"order": "bucket"}, r"data\.order='bucket'.*Did you mean 'bucketed'"),
        ({"pack": "no"}, r"data\.pack=no"),
        ({"on_disk": "yes"}, r"data\.on_disk=yes"),
        ({"order": "bucketed"}, r"add data\.pack=false"),
    ],
)
def test_options_of_reading(options, text):
    with pytest.raises(RazorError, match=text):
        Reading(**options)
    assert Reading(order="bucketed", pack=False).bucketed


@pytest.mark.parametrize(
    ("documents", "options", "text"),
    [
        ([], {}, "no document"),
        (numbered(3, size=1), {}, "no document"),
        (numbered(5), {"held_out": 5}, r"held_out=5 leaves nothing.*5 documents"),
        (numbered(1) * 9, {"held_out": 2}, "repeats itself"),
        (numbered(5), {"held_out": -1}, "held_out=-1"),
        (numbered(5), {"sequence_length": 512, "model_max_length": 256}, "512.*256"),
        (numbered(5), {"sequence_length": 1}, "sequence_length=1"),
    ],
)
def test_errors(chat_tokenizer, documents, options, text):
    settings = {"sequence_length": 16, "held_out": 1, **options}
    with pytest.raises(RazorError, match=text):
        Corpus.build(Given(documents), chat_tokenizer, **settings)
