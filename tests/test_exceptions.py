"""What a model asks of any recipe: other groups, whatever the formats."""

from __future__ import annotations

import pytest
from torch import nn

from razor.errors import RazorError
from razor.quant import Integer, RowMix, Ternary
from razor.recipe import QuantRecipe, Recipe

WIDE = {"odd": {"group": 6}, "in": {"group": 4, "inputs": "none"}}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.add_module("in", nn.Linear(8, 12))
        self.odd, self.out = nn.Linear(12, 8), nn.Linear(8, 8)


def recipe(weights: object = None, **more: object) -> QuantRecipe:
    given = Integer(4, 8) if weights is None else weights
    return QuantRecipe("x", given, Integer(4, 8), Integer(8, 8), None, exceptions=WIDE, **more)  # type: ignore[arg-type]


def test_formats_keep_their_bits_and_get_the_group() -> None:
    mixed = RowMix(Integer(4, 8), Ternary(8), 0.5)
    found = recipe(mixed).plan(Net()).modules
    assert found["odd"].weights.spec() == RowMix(Integer(4, 6), Ternary(6), 0.5).spec()
    assert found["odd"].activations.spec() == Integer(8, 6).spec()  # type: ignore[union-attr]
    assert found["in"].activations is None and found["out"].weights is mixed
    assert recipe().w_a_kv == "W4-A8-KV16"  # no star: a group is no width


def test_overrides_come_after_them_and_files_keep_them(tmp_path: object) -> None:
    changed = recipe(overrides={"odd": {"weights": {"kind": "Integer", "width": 2, "group": 3}}})
    assert changed.plan(Net()).modules["odd"].weights.spec() == Integer(2, 3).spec()
    again = Recipe("x", changed.to_dict()).quant
    assert again is not None and again.plan(Net()).to_dict() == changed.plan(Net()).to_dict()


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(RazorError, match=r"quant.exceptions.odd: this exception changes nothing"):
        QuantRecipe("x", Integer(4, 8), Integer(4, 8), None, None, exceptions={"odd": {}})
    with pytest.raises(RazorError, match=r"quant.exceptions.nobody: 'nobody' matches no module"):
        QuantRecipe("x", Integer(4, 4), Integer(4, 4), None, None, exceptions={"nobody": {"group": 4}}).plan(
            Net()
        )
