from __future__ import annotations

import numpy as np
import pytest

from razor.data.document import Document
from razor.data.filters import Filters, usable
from razor.data.sampling import Free, Text


def document(tokens, response=4):
    mask = np.zeros(len(tokens), dtype=np.bool_)
    mask[-response:] = True
    return Document(np.array(tokens), mask)


def test_each_reason_is_counted_once():
    filters = Filters(min_tokens=3, near_duplicates=0.6)
    texts = [
        (document(range(50)), True),
        (document(range(50)), False),
        (document(range(49)), False),  # 45 of 46 runs are shared
        (document(range(60, 70), response=2), False),
        (document(range(60, 70), response=3), False),  # the same tokens again
        (document(range(70, 80), response=3), True),
    ]
    assert [filters.take(text) for text, _ in texts] == [wanted for _, wanted in texts]
    assert filters.left_out == {"repeated": 2, "nearly repeated": 1, "too short": 1}
    assert str(filters) == "2 repeated, 1 nearly repeated, 1 too short"


def test_by_default_only_equal_texts_are_left_out():
    filters = Filters()
    assert filters.take(document(range(50))) and filters.take(document(range(49)))
    assert filters.take(document([5, 6], response=1)) and not filters.take(document(range(49)))
    assert str(filters) == "1 repeated" and str(Filters()) == ""


@pytest.mark.parametrize(
    "written, wanted",
    [
        ("A word.", True),
        ("   \n", False),
        ("abcd" * 12, False),
        ("aa", True),
        ("the quick brown fox " * 1, True),
    ],
)
def test_usable(chat_tokenizer, written, wanted):
    text = Text([1], [Free(100, frozenset({258}))])
    for token in [*chat_tokenizer(written)["input_ids"], 258]:
        text.take(token)
    assert usable(text, chat_tokenizer) is wanted
