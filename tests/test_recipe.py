"""A recipe speaks of kinds of modules; its plan names every one of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from razor.cli import build, composed, model_source
from razor.errors import RazorError
from razor.quant import Float16, Integer, Plan, RowMix, Ternary
from razor.recipe import QuantRecipe

CONF = Path(__file__).parents[1] / "conf" / "quant"
OPTIONS = sorted(path.stem for path in CONF.glob("*.yaml"))


def recipe_and_model(*overrides: str) -> tuple[QuantRecipe, Any]:
    words = overrides if any(w.startswith("model=") for w in overrides) else ("model=tiny_llama", *overrides)
    config = composed("size", words)
    return build(config.quant), model_source(config).skeleton()


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen3"])
def test_every_option_plans_every_module(name, model):
    recipe, skeleton = recipe_and_model(f"quant={name}", f"model={model}")
    plan = recipe.plan(skeleton)
    plan.check(skeleton)
    assert recipe.name == name
    linear = {n for n, m in skeleton.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(plan.modules) == linear | {"model.embed_tokens"}
    for module, place in plan.modules.items():
        edge = module in ("lm_head", "model.embed_tokens")
        assert place.weights is (recipe.embedding if edge else recipe.weights), module
        assert place.activations is (None if module == "model.embed_tokens" else recipe.activations), module
    assert plan.kv_cache is recipe.kv_cache and plan.rest.spec() == Float16().spec()
    assert Plan.from_dict(plan.to_dict()).to_dict() == plan.to_dict()


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("w16", "W16-A8-KV8"),
        ("w4", "W4-A8-KV8"),
        ("mixed_2p79", "W2.79-A8-KV8"),
        ("mixed_1p88", "W1.88-A8-KV8"),
        ("w1p58", "W1.58-A8-KV8"),
    ],
)
def test_short_names(name, label):
    assert recipe_and_model(f"quant={name}")[0].w_a_kv == label


def test_the_formats_of_the_paper():
    recipe, _ = recipe_and_model("quant=mixed_2p79", "model=qwen3_0p6b")
    assert isinstance(recipe.weights, RowMix) and recipe.weights.fraction == 0.5
    assert isinstance(recipe.weights.high, Integer) and recipe.weights.high.spec() == {
        "kind": "Integer",
        "width": 4,
        "group": 256,
    }
    assert isinstance(recipe.weights.low, Ternary) and (
        recipe.weights.low.group,
        recipe.weights.low.factor,
    ) == (256, 2)
    assert recipe.embedding.spec() == recipe.weights.high.spec()
    assert recipe.activations is not None and recipe.activations.spec() == {
        "kind": "Integer",
        "width": 8,
        "group": 256,
    }
    assert recipe.kv_cache is not None and recipe.kv_cache.spec() == {
        "kind": "Integer",
        "width": 8,
        "group": 128,
    }


@pytest.mark.parametrize("nothing", ["none", "null"])
def test_activations_and_kv_cache_can_be_turned_off(nothing):
    recipe, skeleton = recipe_and_model(
        "quant=w4", f"quant.activations={nothing}", f"quant.kv_cache={nothing}"
    )
    plan = recipe.plan(skeleton)
    assert recipe.w_a_kv == "W4-A16-KV16" and plan.kv_cache is None
    assert all(place.activations is None for place in plan.modules.values())


def test_a_format_can_be_changed_from_the_command_line():
    recipe, _ = recipe_and_model(
        "quant=mixed_2p79", "quant.weights.fraction=0.25", "quant/format@quant.embedding=int8"
    )
    assert isinstance(recipe.weights, RowMix) and recipe.weights.fraction == 0.25
    assert recipe.embedding.label == "8" and recipe.w_a_kv == "W2.19-A8-KV8"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model.group=48"],
            r"Group 48 does not divide the 64 inputs of 'model\.embed_tokens'.* 8, 16, 32, 64 ",
        ),
        (
            ["model.kv_group=12"],
            r"Group 12 does not divide the 16 inputs of 'model\.layers\.0\.self_attn \(KV, head_dim\)'",
        ),
        (["model.architecture.intermediate_size=112", "model.group=64"], r"112 inputs of '.*mlp\.down_proj'"),
    ],
)
@pytest.mark.parametrize("name", ["w4", "mixed_2p79", "w1p58"])
def test_a_group_that_does_not_divide_is_said_with_the_module(name, overrides, words):
    recipe, skeleton = recipe_and_model(f"quant={name}", *overrides)
    with pytest.raises(RazorError, match=words) as problem:
        recipe.plan(skeleton)
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize("fraction", ["-0.1", "1.5"])
def test_a_fraction_outside_its_range_is_said(fraction):
    config = composed("size", ["model=tiny_llama", "quant=mixed_2p79", f"quant.weights.fraction={fraction}"])
    with pytest.raises(
        Exception, match=f"'{fraction}' must lie in 0..1"
    ):  # wrapped by Hydra, unwrapped by the cli
        build(config.quant)


def test_what_is_no_format_is_said():
    with pytest.raises(
        RazorError, match=r"quant\.weights='none' is no number format.*quant/format@quant\.weights=int4"
    ):
        QuantRecipe("x", "none", Integer(4, 8), None, None)  # type: ignore[arg-type]
    with pytest.raises(RazorError, match=r"quant\.embedding='None'"):
        QuantRecipe("x", Integer(4, 8), None, None, None)  # type: ignore[arg-type]
    with pytest.raises(RazorError, match=r"quant\.kv_cache='int8'"):
        QuantRecipe("x", Integer(4, 8), Integer(4, 8), None, "int8")
