"""Every format that some shipped option names, so that a new yaml is under the laws without a line here."""

from __future__ import annotations

from pathlib import Path

import pytest

from razor.cli import build, composed
from razor.quant import Format
from razor.recipe import QuantRecipe

CONF = Path(__file__).parents[2] / "conf" / "quant"
OPTIONS = [
    *(f"quant={path.stem}" for path in sorted(CONF.glob("*.yaml"))),
    *(f"+quant/format@format={path.stem}" for path in sorted(CONF.glob("format/*.yaml"))),
]


def formats_of(option: str, group: int) -> list[Format]:
    """The different formats of one option, built as a command would build them."""
    config = composed("size", ["model=tiny_llama", f"model.group={group}", f"model.kv_group={group}", option])
    if "format" in config:
        return [build(config.format)]
    recipe: QuantRecipe = build(config.quant)
    named = (recipe.weights, recipe.embedding, recipe.activations, recipe.kv_cache)
    return list({str(format.spec()): format for format in named if format is not None}.values())


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda option: option.rpartition("=")[2])
def option(request: pytest.FixtureRequest) -> str:
    """One yaml of conf/quant or conf/quant/format, as an override."""
    return str(request.param)


@pytest.fixture(scope="module", params=[32, 12], ids=["group32", "group12"])
def formats(option: str, request: pytest.FixtureRequest) -> list[Format]:
    """Its formats, in a group that fills whole bytes and in one that does not."""
    return formats_of(option, request.param)
