from __future__ import annotations

from collections import Counter

import pytest
import torch

from razor.data.mix import Mix, shares_of
from razor.data.sampling import Free
from razor.data.turns import Turns
from razor.errors import RazorError

SCRIPT = (Free(4, frozenset({9})),)
TURNS = {
    "chat": Turns(((1, 2),), SCRIPT),
    "text": Turns(tuple((token,) for token in range(100, 150)), SCRIPT),
    "file": Turns(tuple((token, 0, 0) for token in range(200, 207)), SCRIPT),
}


def mix(**shares):
    return Mix(shares_of(shares), {kind: TURNS[kind] for kind in shares if shares[kind]})


def starts(made, count, first=0, seed=0):
    return [tuple(t.tokens) for t in made.texts(count, torch.Generator().manual_seed(seed), first)]


def test_shares_hold_from_the_start_and_in_every_stretch():
    kinds = mix(chat=0.7, text=0.2, file=0.1).kinds(5000)
    for first in range(0, 4900, 61):
        counted = Counter(kinds[first : first + 64])
        for kind, share in (("chat", 0.7), ("text", 0.2), ("file", 0.1)):
            assert abs(counted[kind] - 64 * share) < 4, (first, kind)
    assert abs(Counter(kinds)["text"] - 1000) <= 3


def test_prompts_come_in_order_over_the_shards():
    made = mix(chat=1, file=1)
    taken = [s for first in range(0, 60, 12) for s in starts(made, 12, first) if len(s) == 3]
    assert [s[0] - 200 for s in taken] == [i % 7 for i in range(len(taken))] and len(taken) > 21
    assert starts(made, 60) == [s for first in range(0, 60, 12) for s in starts(made, 12, first)]


def test_texts_begin_by_chance():
    made = mix(text=1)
    assert starts(made, 30) == starts(made, 30) != starts(made, 30, seed=1)
    assert len(set(starts(made, 30))) > 15


def test_shares_are_in_any_unit_and_zero_is_no_share():
    assert shares_of({"text": 2, "chat": 6, "file": 0}) == {"chat": 0.75, "text": 0.25}
    assert mix(chat=6, text=2).describe() == mix(chat=0.75, text=0.25).describe()
    assert mix(chat=6, text=2).describe() != mix(chat=6, text=3).describe()


def test_order_of_the_shares_does_not_matter():
    one, other = shares_of({"chat": 1, "text": 3}), shares_of({"text": 3, "chat": 1})
    assert list(one.items()) == list(other.items())


def test_longest_and_given():
    made = mix(chat=1, text=1, file=1)
    assert made.longest == 7 and made.given == [(1, 2)]


@pytest.mark.parametrize(
    "given, text",
    [
        ({"chat": 1, "txt": 1}, "'txt'. Did you mean"),
        ({"chat": -0.1}, "mix.chat=-0.1"),
        ({"chat": float("nan")}, "mix.chat=nan"),
        ({"chat": float("inf")}, "mix.chat=inf"),
        ({"chat": "half"}, "mix.chat=half"),
        ({"chat": True}, "mix.chat=True"),
        ({"chat": 0, "text": 0}, "no kind a share"),
        ({}, "no kind a share"),
        ([0.7, 0.3], "must give shares"),
        ("chat", "must give shares"),
    ],
)
def test_what_is_no_mix(given, text):
    with pytest.raises(RazorError) as caught:
        shares_of(given)
    assert text in str(caught.value) and "\n" not in str(caught.value)
