from __future__ import annotations

import numpy as np
import pytest

from razor.data.near_duplicates import RUN, NearDuplicates


def likeness(a, b):
    """Jaccard's index of the runs, by Python's sets."""
    one, other = ({tuple(t[i : i + RUN]) for i in range(len(t) - RUN + 1)} for t in (a, b))
    return len(one & other) / len(one | other)


def test_found_is_what_is_alike():
    rng = np.random.default_rng(0)
    found = missed = false = 0
    for _ in range(150):
        text = rng.integers(0, 50_000, 120).tolist()
        changed = list(text)
        for place in rng.integers(0, 120, rng.integers(0, 12)):
            changed[place] = int(rng.integers(0, 50_000))
        near = NearDuplicates(0.7)
        assert not near.repeats(text)
        said, truth = near.repeats(changed), likeness(text, changed) >= 0.7
        found += said and truth
        missed += truth and not said
        false += said and not truth
    assert found > 30 and missed == 0 and false == 0


def test_among_many_only_the_like_one_counts():
    rng = np.random.default_rng(1)
    texts = rng.integers(0, 30, (400, 60)).tolist()  # few tokens: many runs by chance
    near = NearDuplicates(0.5)
    assert not any(near.repeats(text) for text in texts)
    assert all(near.repeats([*text[:-2], 77, 78]) for text in texts[::40])
    assert near.repeats(texts[3])


def test_what_all_texts_share_makes_none_alike():
    template = list(range(100, 140))
    one, other = [*template, 1, 2, 3, 4, 5, 6], [*template, 9, 8, 7, 6, 5, 4]
    blind = NearDuplicates(0.5)
    assert not blind.repeats(one) and blind.repeats(other)
    seeing = NearDuplicates(0.5, given=[template])
    assert not seeing.repeats(one) and not seeing.repeats(other) and seeing.repeats(one)


@pytest.mark.parametrize("text", [[7], [7, 8], [0, 0, 0, 0], [1, 2, 3, 4, 5]])
def test_short_texts(text):
    near = NearDuplicates(1.0)
    assert not near.repeats(text) and near.repeats(text)
    assert not near.repeats([*text, 9])


def test_no_tokens_repeat_nothing():
    near = NearDuplicates(0.5)
    assert not near.repeats([]) and not near.repeats([])
