from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.data.document import Document
from razor.data.packing import fit
from razor.data.pieces import Lost, Secrets, cut


@st.composite
def documents(draw):
    made = []
    for size in draw(st.lists(st.integers(1, 40), max_size=10)):
        mask = draw(st.one_of(st.just([True] * size), st.lists(st.booleans(), min_size=size, max_size=size)))
        made.append(Document(np.array(draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))), mask))
    return made


def shard(made):
    """Lengths, mask and tokens of documents end to end."""
    offsets = np.cumsum([0, *map(len, made)]).astype(np.int64)
    response = np.concatenate([np.zeros(0, dtype=bool), *(d.response for d in made)])
    return offsets, response, np.concatenate([np.zeros(0, dtype=np.int32), *(d.tokens for d in made)])


@settings(deadline=None, max_examples=200)
@given(documents(), st.integers(2, 20))
def test_pieces_are_those_of_documents_in_memory(made, length):
    offsets, response, tokens = shard(made)
    lost = Lost()
    pieces = cut(offsets, response, length, lost)
    fitted = fit(made, length)
    spans = zip(pieces.starts, pieces.sizes, strict=True)
    assert [tokens[a : a + n].tolist() for a, n in spans] == [d.tokens.tolist() for d in fitted]
    assert pieces.targets.tolist() == [d.targets for d in fitted]
    assert pieces.tokens == sum(map(len, fitted)) and lost.documents == len(made)


def test_losses_are_counted(caplog):
    late = Document(np.arange(10), np.arange(10) >= 8)
    early = Document(np.arange(10), np.arange(10) >= 4)
    lost = Lost()
    cut(*shard([late, early, early])[:2], 6, lost)
    assert lost == Lost(documents=3, truncated=3, useless=1)


@settings(deadline=None, max_examples=100)
@given(documents(), st.integers(2, 12), st.integers(0, 4))
def test_copies_of_secret_pieces_are_found(made, length, secret):
    fitted = fit(made, length)
    chosen = fitted[:secret]
    offsets, response, tokens = shard(made)
    kept = Secrets(chosen).others(cut(offsets, response, length, Lost()), tokens.astype(np.uint16))
    keys = {d.key() for d in chosen}
    wanted = [d.tokens.tolist() for d in fitted if d.key() not in keys]
    assert [tokens[a : a + n].tolist() for a, n in zip(kept.starts, kept.sizes, strict=True)] == wanted


def test_alike_is_no_copy():
    """Equal length, first, middle and last token."""
    one, other = ([1, 2, 9, 3, 4], [1, 7, 9, 3, 4])
    made = [Document(np.array(one), [True] * 5), Document(np.array(other), [True] * 5)]
    offsets, response, tokens = shard(made)
    kept = Secrets(made[:1]).others(cut(offsets, response, 8, Lost()), tokens)
    assert kept.starts.tolist() == [5]


@pytest.mark.parametrize("size", [1, 2])
def test_shortest(size):
    pieces = cut(np.array([0, size]), np.array([False] + [True] * (size - 1)), 2, Lost())
    assert len(pieces) == size - 1
