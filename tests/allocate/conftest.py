"""A tiny model, what may be decided about it, and text."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from razor import cli
from razor.allocate import Automatic, Search, Space, Text
from razor.allocate.scores import ActivationError, Fisher, Score, TrueKL, WeightError
from razor.cli.allocate import gguf_fit, named_formats
from tests.models.conftest import packed_batch

LENGTHS = ((30, 34), (60,))
SCORES: dict[str, type[Score]] = {kind.name: kind for kind in (WeightError, ActivationError, Fisher, TrueKL)}


def batches(seeds: range) -> list[Any]:
    """Packed documents whose every token carries a loss."""
    found = []
    for seed in seeds:
        batch = packed_batch(LENGTHS, 64, seed)
        batch.labels = torch.where(batch.documents >= 0, batch.input_ids.roll(-1, 1), batch.labels)
        found.append(batch)
    return found


def score_of(name: str) -> Score:
    """A score that looks at little."""
    return WeightError() if name == "weight_error" else SCORES[name](2 if name == "kl" else 4)  # type: ignore[call-arg]


@cache
def composed(model: str) -> tuple[Any, Any, Any]:
    """Config of the verb, its recipe without the open weights, and the model's source."""
    config = cli.composed("allocate", [f"model={model}"])
    return config, cli.build(config.quant)._recipe, cli.model_source(config)


@cache
def formats(model: str, names: tuple[str, ...]) -> Any:
    """Formats by name, with the groups of a model."""
    return named_formats(names, composed(model)[0])


@cache
def skeleton(model: str) -> Any:
    """The model without weights; look, don't change."""
    return composed(model)[2].skeleton()


def automatic(
    budget: float = 2.79, model: str = "tiny_llama", **settings: Any
) -> tuple[Automatic, Space, Any]:
    """(what is to be found, in what, source of the model)."""
    _, parts, source = composed(model)
    given: dict[str, Any] = {"options": ["ternary", "int2", "int3", "int4"], "kl_rows": 2} | settings
    score = given.get("score", "fisher")
    given["score"] = score_of(score) if isinstance(score, str) else score
    found = Automatic(
        "auto",
        budget,
        embedding=parts.embedding,
        activations=parts.activations,
        kv_cache=parts.kv_cache,
        **given,
    )
    fit = gguf_fit(composed(model)[0]) if found.fits == "gguf" else None
    return found, found.space(skeleton(model), formats(model, tuple(found.options)), fit), source


@pytest.fixture
def searching(tmp_path: Any) -> Callable[..., Search]:
    """Make a `Search` of a tiny model on a little text."""

    def make(budget: float = 2.79, model: str = "tiny_llama", **settings: Any) -> Search:
        found, space, source = automatic(budget, model, **settings)
        text = Text(lambda rows: batches(range(rows // 2)), batches(range(50, 51)))
        dtype = torch.float32
        return Search(found, space, source.fingerprint(), lambda: source.load(dtype), dtype, text, tmp_path)

    return make
