from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.data.document import Document
from razor.data.packing import PackedRows, collate, fit, pack
from razor.distill.batch import IGNORE
from razor.errors import RazorError


def text(*tokens: int) -> Document:
    return Document(np.array(tokens), np.ones(len(tokens), dtype=bool))


@st.composite
def corpora(draw, longest=40):
    """Documents whose tokens all differ, so that each can be found again."""
    documents, taken = [], 1
    for size in draw(st.lists(st.integers(1, longest), min_size=1, max_size=12)):
        mask = draw(st.one_of(st.just([True] * size), st.lists(st.booleans(), min_size=size, max_size=size)))
        documents.append(Document(np.arange(taken, taken + size), np.array(mask)))
        taken += size
    return documents


def predictions(rows: PackedRows) -> Counter:
    """(token read, token to predict) for every position with a loss."""
    found: Counter = Counter()
    for index in range(len(rows)):
        row = rows[index]
        where = row.valid
        found.update(zip(row.input_ids[where].tolist(), row.labels[where].tolist(), strict=True))
    return found


@settings(deadline=None, max_examples=150)
@given(corpora(longest=16), st.integers(0, 3))
def test_every_response_token_is_predicted_once_from_the_token_before_it(documents, seed):
    rows = pack(documents, 16, seed=seed)
    wanted = Counter(
        (int(document.tokens[i - 1]), int(document.tokens[i]))
        for document in documents
        for i in range(1, len(document))
        if document.response[i]
    )
    assert predictions(rows) == wanted
    assert rows.targets == wanted.total()


@settings(deadline=None, max_examples=100)
@given(corpora(), st.integers(2, 20))
def test_cut_text_still_predicts_every_token_once(documents, length):
    texts = [Document(d.tokens, np.ones(len(d), dtype=bool)) for d in documents]
    wanted = Counter((int(a), int(b)) for d in texts for a, b in zip(d.tokens, d.tokens[1:], strict=False))
    assert predictions(pack(texts, length)) == wanted


@settings(deadline=None, max_examples=100)
@given(corpora(), st.integers(2, 20), st.integers(0, 3))
def test_rows_are_well_formed(documents, length, seed):
    rows = pack(documents, length, pad_id=7, seed=seed)
    assert sorted(i for row in rows.rows for i in row) == list(range(len(rows.documents)))
    for index in range(len(rows)):
        row = rows[index]
        assert row.input_ids.shape == (1, length)
        owner, position = row.documents[0], row.position_ids[0]
        starts = torch.tensor([True, *(owner[1:] != owner[:-1]).tolist()])
        assert (position[starts] == 0).all()
        assert (position[1:][~starts[1:]] == position[:-1][~starts[1:]] + 1).all()
        padding = owner == -1
        assert (row.labels[0][padding] == IGNORE).all() and (row.input_ids[0][padding] == 7).all()
        last = torch.cat([starts[1:], torch.tensor([True])])
        assert (row.labels[0][last] == IGNORE).all()  # nothing crosses a border
        learns = set(owner[row.valid[0]].tolist())
        assert len(learns) == rows.documents_in(index)


@settings(deadline=None, max_examples=50)
@given(corpora(), st.integers(0, 5))
def test_packing_is_a_function_of_documents_and_seed(documents, seed):
    assert pack(documents, 32, seed=seed).rows == pack(documents, 32, seed=seed).rows


def test_packing_wastes_little():
    sizes = np.random.default_rng(0).integers(20, 240, 400)
    rows = pack([text(*range(size)) for size in sizes], 512)
    assert rows.tokens / (len(rows) * 512) > 0.97


def test_long_chat_is_truncated_and_counted(caplog):
    answer = Document(np.arange(10), np.arange(10) >= 4)
    late = Document(np.arange(10), np.arange(10) >= 8)
    assert [len(document) for document in fit([answer, late], 6)] == [6]
    (line,) = caplog.messages
    assert line.startswith("2 of 2 documents were longer than 6 tokens") and "1 without" in line


def test_collate_keeps_documents_apart():
    rows = pack([text(1, 2, 3), text(4, 5, 6), text(7, 8, 9, 10, 11)], 8)
    batch = collate([rows[i] for i in range(len(rows))])
    assert sorted(batch.documents.unique().tolist()) in ([-1, 0, 1, 2], [0, 1, 2])
    assert batch.token_weights().sum() == pytest.approx(1)
    for batch in rows.batches(1):
        assert batch.input_ids.shape == (1, 8)
    assert [len(batch.input_ids) for batch in rows.batches(5)] == [len(rows)]


@pytest.mark.parametrize("length", [1, 0, -3])
def test_row_must_hold_a_prediction(length):
    with pytest.raises(RazorError, match="at least 2"):
        pack([text(1, 2)], length)


def test_unpacked_rows_are_as_long_as_their_documents(tiny_model):
    documents = [text(*range(1, size + 1)) for size in (5, 3, 9)]
    rows = pack(documents, 16, pad_id=256, packed=False)
    assert [rows[i].input_ids.shape[1] for i in range(3)] == [5, 3, 9] == rows.lengths().tolist()
    batch = rows.batch([0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 256, 256]]
    assert batch.labels.tolist() == [[2, 3, 4, 5, IGNORE], [2, 3, IGNORE, IGNORE, IGNORE]]
    assert batch.documents.tolist() == [[0] * 5, [1, 1, 1, -1, -1]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 1]]
    assert [b.input_ids.shape for b in rows.batches(2)] == [(2, 5), (1, 9)]
    with torch.no_grad():
        together = tiny_model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        alone = tiny_model(rows[1].input_ids, position_ids=rows[1].position_ids, use_cache=False).logits
    torch.testing.assert_close(together[1:, :3], alone, atol=1e-5, rtol=1e-4)


@settings(deadline=None, max_examples=50)
@given(corpora(longest=16), st.integers(0, 3))
def test_lengths_of_packed_rows(documents, seed):
    rows = pack(documents, 16, seed=seed)
    assert rows.lengths().tolist() == [int((rows[i].documents >= 0).sum()) for i in range(len(rows))]


def test_packed_documents_do_not_attend_to_each_other(tiny_model):
    generator = np.random.default_rng(0)
    documents = [text(*generator.integers(1, 250, size)) for size in (30, 11, 7, 25, 2, 5)]
    rows = pack(documents, 48, pad_id=256)
    batch = collate([rows[i] for i in range(len(rows))])
    assert len(rows) == 2 and (batch.documents == -1).any()
    with torch.no_grad():
        packed = tiny_model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
        for owner in range(len(documents)):
            where = batch.documents == owner
            alone = tiny_model(batch.input_ids[where][None], use_cache=False).logits[0]
            torch.testing.assert_close(packed[where], alone, atol=1e-5, rtol=1e-4)
