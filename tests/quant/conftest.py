"""Every format that some shipped option names, so that a new yaml is under the laws without a line here."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest

from razor.cli import build, composed
from razor.errors import RazorError
from razor.quant import Format

CONF = Path(__file__).parents[2] / "conf" / "quant"
HAND_MADE = {"recipe", "plan"}  # options that read a file of the user's
FOUND = {
    path.stem for path in CONF.glob("auto_*.yaml")
}  # whose formats are found among those of quant/format
OPTIONS = [
    *(f"quant={path.stem}" for path in sorted(CONF.glob("*.yaml")) if path.stem not in HAND_MADE | FOUND),
    *(f"+quant/format@format={path.stem}" for path in sorted(CONF.glob("format/*.yaml"))),
    "quant=mixed_2p79 quant.weights.rows=error",
    "quant=mixed_1p88 quant/format@quant.weights.low=lsq quant/format@quant.weights.high=affine4",
    "quant=mixed_2p79 quant/format@quant.weights.low=seq_2 quant.weights.rows=error quant.weights.fraction=0.3",
    "quant=mixed_2p79 quant/format@quant.weights.low=seq_2 quant/format@quant.weights.high=affine4",
    "quant=w4 quant.weights.scale_dtype=bfloat16 quant.weights.scale=mse",
    "quant=w2 quant/format@quant.weights.base=affine3",
]


@lru_cache
def formats_of(option: str, group: int | str) -> tuple[Format, ...]:
    """The different formats of one option, built as a command would build them; none if it refuses the group."""
    words = ["model=tiny_llama", f"model.group={group}", f"model.kv_group={group}", *option.split()]
    try:
        config = composed("size", words)
        if "format" in config:
            return (build(config.format).eval(),)
        recipe = build(config.quant)
    except Exception as error:
        refused = error
        while refused.__cause__ is not None:
            refused = refused.__cause__  # type: ignore[assignment]
        assert isinstance(refused, RazorError) and group == "tensor" and "within a row" in str(refused)
        return ()
    named = (recipe.weights, recipe.embedding, recipe.activations, recipe.kv_cache)
    return tuple({str(format.spec()): format.eval() for format in named if format is not None}.values())


@pytest.fixture(scope="module", params=OPTIONS, ids=lambda option: option.rpartition("=")[2])
def option(request: pytest.FixtureRequest) -> str:
    """One yaml of conf/quant or conf/quant/format, or a combination of them, as overrides."""
    return str(request.param)
