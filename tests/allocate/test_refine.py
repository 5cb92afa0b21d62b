"""Refinement never makes the plan worse on the text it looks at, nor larger; interactions are differences of KL."""

from __future__ import annotations

import pytest

from razor.allocate.interactions import interactions


def test_swaps_keep_the_budget_and_never_lose(searching):
    search = searching(2.2, score="weight_error", swaps=12)
    table = search.table()
    first = search.automatic.answer(search.space, table)
    refined = search.refined(first, table)
    assert 0 < len(refined.tried) <= 12
    assert refined.kl == min([refined.first, *(kl for *_, kl in refined.tried)])
    assert refined.answer.size.code_bits <= 2.2 + 1e-9
    meter = search.subject.meter(2)
    assert meter.kl(refined.answer.formats) == pytest.approx(refined.kl)
    assert meter.kl(first.formats) == pytest.approx(refined.first)
    same = refined.answer.labels == first.labels
    assert same == (refined.kl == refined.first)
    assert (
        refined.answer.predicted >= first.predicted - 1e-9
    )  # by the scores alone the first one was the best


def test_swaps_find_what_a_wrong_score_hides(searching):
    """With the losses of one kind of matrix belittled, the first plan starves it; true KL tells."""
    search = searching(2.79, score="kl", swaps=14, options=["ternary", "int4"])
    table = search.table()
    for name in table.losses:
        if name.endswith("down_proj"):
            table.losses[name] = table.losses[name] * 1e-6
    refined = search.refined(search.automatic.answer(search.space, table), table)
    assert refined.kl < refined.first


def test_interactions_are_what_is_left_over(searching):
    search = searching(score="weight_error")
    formats = search.automatic.answer(search.space, search.table()).formats
    meter = search.subject.meter(2)
    found = interactions(meter, search.space, formats, 4, seed=0)
    assert len(found) == 4 and len({(each.one, each.other) for each in found}) == 4
    base, one = meter.kl(), found[0]
    both = meter.kl({name: formats[name] for name in (one.one, one.other)})
    assert one.together == pytest.approx(both - base, abs=1e-9)
    alone = sum(meter.kl({name: formats[name]}) - base for name in (one.one, one.other))
    assert one.alone == pytest.approx(alone, abs=1e-9)
