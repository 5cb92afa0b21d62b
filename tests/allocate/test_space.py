"""What may be decided, and what it takes: accounting is that of `razor.quant.measure`."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from razor.allocate.budget import UNITS, Budget
from razor.allocate.solving import answer, bounds
from razor.allocate.table import Measured, ScoreTable
from razor.errors import RazorError
from razor.quant import RowMix, measure
from tests.allocate.conftest import automatic

ABOUT = Measured("tiny", "given", "nats", "", "", 0)


def random_table(space, seed=0):
    """Losses of rows that fall as bits rise."""
    generator = torch.Generator().manual_seed(seed)
    table = ScoreTable(ABOUT)
    for target in space.targets.values():
        bits = [space.size(target.name, f).code_bits / target.weights for f in target.formats.values()]
        scale = torch.rand(1, target.site.shape[0], generator=generator) ** 3
        table.add(target, scale * torch.tensor([4.0**-b for b in bits]).unsqueeze(1))
    return table


def amount(size, unit):
    """A unit's figure, from the accounting of `razor size`."""
    total = size.total
    found = {"code_bits": size.code_bits, "bpw": total.bits_per_weight}
    return (found | {"MB": total.bytes_disk / 1e6, "ratio": total.ratio_paper})[unit]


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen3"])
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("rows", [False, True], ids=["matrix", "row"])
def test_a_plan_has_the_size_that_was_counted_and_no_more_than_the_budget(model, unit, rows):
    _, space, source = automatic(model=model)
    ends = bounds(space, Budget(1.0, unit))
    for share in (0.0, 0.3, 0.62, 1.0):
        budget = Budget(ends[0] + share * (ends[1] - ends[0]), unit)
        found = answer(space, random_table(space), budget, rows)
        size = measure(source.skeleton(), found.plan)
        for part in ("parameters", "code_bits", "side_bits", "bytes_disk"):
            assert getattr(size.total, part) == pytest.approx(getattr(found.size.total, part), rel=1e-12)
            assert getattr(size.linear, part) == pytest.approx(getattr(found.size.linear, part), rel=1e-12)
        reached = amount(size, unit)
        within = (
            reached >= budget.amount * (1 - 1e-9)
            if unit == "ratio"
            else reached <= budget.amount * (1 + 1e-9)
        )
        assert within, (reached, budget)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=4), st.sampled_from(list(UNITS)), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_more_bits_never_predict_more_loss(shares, unit, seed):
    _, space, _ = automatic()
    table, ends = random_table(space, seed), bounds(space, Budget(1.0, unit))
    losses = [
        answer(space, table, Budget(ends[0] + share * (ends[1] - ends[0]), unit)).predicted
        for share in sorted(shares)
    ]
    assert all(after <= before + 1e-9 for before, after in pairwise(losses))


def test_rows_are_no_worse_than_matrices_and_their_map_is_counted():
    _, space, source = automatic()
    table, budget = random_table(space), Budget(2.9, "bpw")
    whole, rows = (answer(space, table, budget, by_rows) for by_rows in (False, True))
    assert rows.predicted < whole.predicted
    mixed = {name: format for name, format in rows.formats.items() if isinstance(format, RowMix)}
    assert mixed
    for name, format in mixed.items():
        shape = space.targets[name].site.shape
        even = RowMix(format.high, format.low, format.fraction)
        assert format.bits(shape) == even.bits(shape) + shape[0]
        gain = table.rows(space.targets[name], _option(space, name, format.low)) - table.rows(
            space.targets[name], _option(space, name, format.high)
        )
        high = format.rows_high(torch.zeros(shape))
        assert gain[high].min() >= gain[~high].max()  # the rows that gain most
    rows.plan.check(source.skeleton())


def _option(space, name, format):
    return next(o for o, own in space.targets[name].formats.items() if own.spec() == format.spec())


def test_what_is_decided_together_has_one_format():
    _, space, _ = automatic(coupled=True)
    assert ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj") in space.groups
    assert sum(len(group) for group in space.groups) == len(space.targets)
    plan = answer(space, random_table(space), Budget(2.79)).plan
    for layer in range(4):
        inputs = (
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            ("mlp.gate_proj", "mlp.up_proj"),
        )
        for group in inputs:
            specs = [plan.modules[f"model.layers.{layer}.{last}"].weights.spec() for last in group]
            assert all(spec == specs[0] for spec in specs)
    _, blocks, _ = automatic(granularity="block")
    assert len(blocks.groups) == 4 and all(len(group) == 7 for group in blocks.groups)


def test_patterns_settle_what_they_name():
    excluded = "*.layers.0.*"
    eight = {"*.v_proj": {"weights": {"kind": "Integer", "width": 8, "group": 32}}}
    _, space, source = automatic(3.0, overrides=eight)
    assert not any(name.endswith("v_proj") for name in space.targets)
    _, space, source = automatic(6.0, exclude=[excluded])
    plan = answer(space, random_table(space), Budget(6.0)).plan
    assert plan.modules["model.layers.0.mlp.up_proj"].weights.label == "16"
    assert measure(source.skeleton(), plan).code_bits <= 6.0


def test_gguf_admits_what_its_types_hold_at_their_bits():
    settings = {"fits": "gguf", "unit": "bpw", "options": ["ternary", "int4", "int8"]}
    _, space, _ = automatic(6.0, **settings)
    target = space.targets["model.layers.0.mlp.up_proj"]  # rows of 64: no type for ternary but Q4_0
    assert target.types == {"ternary": "Q4_0", "int4": "Q4_0", "int8": "Q8_0"}
    size = space.size(target.name, target.formats["int8"])
    assert size.bits == 8.5 * target.weights and size.bytes_disk == 8.5 * target.weights / 8
    with pytest.raises(RazorError, match=r"can have none of them\. No GGUF type holds one of them exactly"):
        automatic(2.0, fits="gguf", options=["affine4"])


def test_gguf_takes_ternary_in_groups_of_256_where_they_fit():
    _, space, _ = automatic(2.79, "qwen3_0p6b", fits="gguf", unit="code_bits", options=["ternary", "int4"])
    assert {each.types["ternary"] for each in space.targets.values()} == {"TQ1_0"}
    least, most = bounds(space, Budget(1.0))
    assert (least, most) == (pytest.approx(1.6875), pytest.approx(4.5))
    _, space, _ = automatic(4.2, "smollm2_135m", fits="gguf", unit="code_bits", options=["ternary", "int4"])
    down, up = (space.targets[f"model.layers.0.mlp.{last}_proj"] for last in ("down", "up"))
    assert (down.types["ternary"], up.types["ternary"]) == ("TQ1_0", "Q4_0")
    assert down.formats["ternary"].group == 256 and down.formats["int4"].group == 64


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"budget": 1.2}, r"budget=1\.2 lies .* smallest plan has 1\.58 code bits, the largest 4 code bits"),
        ({"budget": 4.01}, r"budget=4\.01 lies outside"),
        ({"budget": 0.001, "unit": "MB"}, r"smallest plan has .* MB, the largest .* MB"),
        ({"budget": 16.0, "unit": "ratio"}, r"smallest plan has .* times smaller than 16 bits"),
        ({"budget": -1.0}, "budget=-1.0 must be a number above 0"),
        ({"budget": "much"}, "budget='much' must be a number"),
        ({"unit": "code_bit"}, r"unit=code_bit\. Did you mean 'code_bits'\? Choices: MB, bpw, code_bits, ratio"),
        ({"granularity": "rows"}, r"granularity=rows\. Did you mean 'row'\? Choices: block, matrix, row"),
        ({"fits": "ggml"}, r"fits=ggml\. Choices: any, gguf"),
        ({"options": ["ternery"]}, r"options: there is no format 'ternery'\. Did you mean 'ternary'\? Choices: a"),
        ({"options": []}, r"options=\[\] leaves no format"),
        ({"swaps": -1}, "swaps=-1 must be at least 0"),
        ({"coupled": "yes"}, "coupled='yes' must be true or false"),
        ({"granularity": "row", "score": "kl"}, "score=kl judges whole matrices"),
        ({"granularity": "row", "fits": "gguf"}, "do not go together"),
        ({"exclude": ["*_proj"]}, "There is nothing to decide"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_from_shapes_alone(settings, problem):
    with pytest.raises(RazorError, match=problem):
        automatic(**settings)
