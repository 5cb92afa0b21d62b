"""A recipe speaks of kinds of modules; its plan names every one of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from razor.cli import build, composed, model_source
from razor.errors import RazorError
from razor.quant import Float16, Integer, Plan, RowMix, Ternary, measure
from razor.recipe import Override, PlanFile, QuantRecipe
from razor.recipe.override import matching

CONF = Path(__file__).parents[1] / "conf" / "quant"
FILES = {"plan", "recipe"}  # options that read a file
FOUND = {path.stem for path in CONF.glob("auto_*.yaml")}  # whose plan is found for a model: tests/allocate
OPTIONS = sorted({path.stem for path in CONF.glob("*.yaml")} - FILES - FOUND)


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
    others = {m: o for p, o in recipe.overrides.items() for m in matching(p, linear - {"lm_head"}, "")}
    for module, place in plan.modules.items():
        edge = module in ("lm_head", "model.embed_tokens")
        usual = recipe.embedding if edge else recipe.weights
        assert place.weights is (others[module].weights if module in others else usual), module
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
    assert isinstance(recipe.weights.high, Integer)
    assert (recipe.weights.high.width, recipe.weights.high.group) == (4, 256)
    assert isinstance(recipe.weights.low, Ternary) and (
        recipe.weights.low.group,
        recipe.weights.low.factor,
    ) == (256, 2)
    assert recipe.embedding.spec() == recipe.weights.high.spec()
    assert isinstance(recipe.activations, Integer) and isinstance(recipe.kv_cache, Integer)
    assert (recipe.activations.width, recipe.activations.group) == (8, 256)
    assert (recipe.kv_cache.width, recipe.kv_cache.group) == (8, 128)


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
            r"Group 48 does not divide the 64 inputs of 'model\.embed_tokens'.* 8, 16, 32, 64\b",
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


DOWN = {"weights": {"kind": "Integer", "width": 3, "group": 64}}


def small(**values: Any) -> QuantRecipe:
    """Ternary with int4 edges and int8 activations, for the tiny models."""
    return QuantRecipe("small", Ternary(32), Integer(4, 32), Integer(8, 32), None, **values)


@pytest.fixture(scope="module")
def skeleton() -> Any:
    return model_source(composed("size", ["model=tiny_llama"])).skeleton()


def labels(recipe: QuantRecipe, model: nn.Module) -> dict[str, str]:
    """Width of weights and activations of each module: '1.58/8'."""
    places = recipe.plan(model).modules.items()
    return {name: f"{p.weights.label}/{p.activations.label if p.activations else '-'}" for name, p in places}


def test_without_exceptions_nothing_changes(skeleton):
    plain, empty = labels(small(), skeleton), labels(small(overrides={}, exclude=[]), skeleton)
    assert plain == empty and small().w_a_kv == "W1.58-A8-KV16"
    assert set(plain.values()) == {"4/-", "4/8", "1.58/8"}


def test_overrides_change_what_they_match_and_the_last_wins(skeleton):
    recipe = small(
        overrides={
            "*.down_proj": DOWN,
            r"re:model\.layers\.[12]\.mlp\..*": {"activations": None},
            "model.layers.2.mlp.down_proj": Override(Integer(5, 32), Integer(4, 32)),
            "*embed*": {"weights": {"kind": "Integer", "width": 8, "group": 32}},
        }
    )
    assert recipe.w_a_kv == "W1.58*-A8-KV16"  # nothing is planned yet
    found, plain = labels(recipe, skeleton), labels(small(), skeleton)
    expected = {
        f"model.layers.{i}.mlp.down_proj": value for i, value in enumerate(["3/8", "3/-", "5/4", "3/8"])
    }
    expected |= {f"model.layers.{i}.mlp.{part}_proj": "1.58/-" for i in (1, 2) for part in ("gate", "up")}
    expected |= {"model.embed_tokens": "8/-"}
    assert {name: value for name, value in found.items() if value != plain[name]} == expected
    mean = measure(skeleton, recipe.plan(skeleton)).code_bits
    assert recipe.w_a_kv == f"W{mean:.2f}-A8-KV16" and 1.58 < mean < 5


def test_none_is_a_word_for_no_activations(skeleton):
    found = labels(small(overrides={"*.layers.0.*": {"activations": "none"}}), skeleton)
    assert {v for n, v in found.items() if ".layers.0." in n} == {"1.58/-"}


def test_what_is_excluded_is_left_at_16_bits(skeleton):
    recipe = small(
        overrides={"*.down_proj": DOWN}, exclude=["*.layers.0.*", "lm_head"], rest=Float16("float16")
    )
    plan = recipe.plan(skeleton)
    left = {name for name, place in plan.modules.items() if isinstance(place.weights, Float16)}
    assert left == {n for n in plan.modules if ".layers.0." in n} | {"lm_head"} and len(left) == 8
    assert all(plan.modules[name].activations is None for name in left)
    assert {plan.modules[name].weights.dtype for name in left} == {"float16"} == {plan.rest.dtype}


def test_a_head_of_its_own(skeleton):
    assert labels(small(head=Integer(8, 32)), skeleton)["lm_head"] == "8/8"
    tied = model_source(composed("size", ["model=tiny_qwen3"])).skeleton()
    assert labels(small(head=Integer(4, 32)), tied)["lm_head"] == "4/8"  # the same in other words
    with pytest.raises(RazorError, match=r"quant\.head differs from quant\.embedding.*share one weight"):
        small(head=Integer(8, 32)).plan(tied)
    with pytest.raises(RazorError, match=r"'lm_head' and 'model\.embed_tokens' share one weight"):
        small(exclude=["lm_head"]).plan(tied)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"exclude": ["*.down_prj"]},
            r"^quant\.exclude\[0\]: '\*\.down_prj' matches no module\. Did you mean "
            r"'\*\.down_proj'\? Modules: lm_head, model\.embed_tokens, model\.layers\.\*\.mlp\.down_proj, ",
        ),
        (
            {"exclude": ["lm_head", "model.layers.9.*"]},
            r"^quant\.exclude\[1\]: 'model\.layers\.9\.\*' matches no",
        ),
        ({"exclude": ["down_proj"]}, r"'down_proj' matches no module\. Did you mean '\*\.down_proj'"),
        ({"exclude": ["*.DOWN_proj"]}, r"'\*\.DOWN_proj' matches no module"),
        ({"exclude": ["re:down_proj"]}, r"'re:down_proj' matches no module"),
        ({"exclude": ["re:(["]}, r"quant\.exclude\[0\]: 're:\(\[' is no regular expression \(unterminated"),
        ({"overrides": {"*.v": DOWN}}, r"^quant\.overrides\.\*\.v: '\*\.v' matches no module"),
        (
            {"overrides": {"*embed*": {"activations": {"kind": "Integer", "width": 8, "group": 32}}}},
            r"quant\.overrides\.\*embed\*\.activations: 'model\.embed_tokens' takes no activations",
        ),
        (
            {"overrides": {"*.down_proj": {"weights": {"kind": "Integer", "width": 4, "group": 48}}}},
            r"Group 48 does not divide the 128 inputs of 'model\.layers\.0\.mlp\.down_proj'",
        ),
    ],
)
def test_exceptions_that_do_not_fit_the_model(skeleton, values, words):
    with pytest.raises(RazorError, match=words) as problem:
        small(**values).plan(skeleton)
    assert "\n" not in str(problem.value) and len(str(problem.value)) < 700


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"exclude": "lm_head"}, r"^quant\.exclude='lm_head' must be a list, not text\.$"),
        ({"exclude": [3]}, r"^quant\.exclude\[0\]=3 must be text, not a whole number\.$"),
        ({"overrides": ["*"]}, r"^quant\.overrides=\['\*'\] must be a mapping, not list\.$"),
        ({"overrides": {"*.up_proj": {"weight": DOWN}}}, r"overrides\.\*\.up_proj\.weight is unknown\. Did you"),
        ({"overrides": {"*.up_proj": {}}}, r"^quant\.overrides\.\*\.up_proj: this override changes nothing"),
        ({"overrides": {"*.up_proj": {"weights": None}}}, r"^quant\.overrides\.\*\.up_proj\.weights=null must be"),
        ({"overrides": {"*.up_proj": {"weights": "int4"}}}, r"up_proj\.weights='int4' must be a mapping with"),
        ({"head": "none"} , None),
        ({"head": "int8"}, r"quant\.head='int8' is no number format"),
        ({"rest": "bf16"}, r"quant\.rest='bf16' is no number format"),
    ],
)  # fmt: skip
def test_exceptions_of_another_form(values, words):
    if words is None:
        assert small(**values).head is None
        return
    with pytest.raises(RazorError, match=words):
        small(**values)


def test_exceptions_from_the_command_line(razor, tmp_path):
    """As Hydra's options; a pattern as a key is not quoted there."""
    words = ["quant.overrides={*.down_proj:{weights:{kind:Integer,width:4,group:64},activations:null}}"]
    words += [
        "quant.exclude=[*.layers.0.*,lm_head]",
        "quant/format@quant.head=int8",
        "quant.rest.dtype=float16",
    ]
    recipe, model = recipe_and_model("quant=w1p58", *words)
    found = labels(recipe, model)
    assert found["model.layers.1.mlp.down_proj"] == "4/-" and found["model.layers.1.mlp.up_proj"] == "1.58/8"
    assert found["lm_head"] == found["model.layers.0.mlp.down_proj"] == "16/-"
    assert recipe.head is not None and recipe.head.label == "8" and recipe.rest.dtype == "float16"
    done = razor("size", "model=tiny_llama", "quant.exclude=[*.down_prj]")
    assert "quant.exclude[0]: '*.down_prj' matches no module. Did you mean '*.down_proj'" in done.problem


def test_what_a_plan_need_not_name_can_be_named():
    """The router of a mixture keeps 16 bits unless a pattern is for it alone."""
    model = nn.ModuleDict({"up": nn.Linear(64, 8), "gate": Router()})
    plain = small(overrides={"*": DOWN}).plan(model)
    assert set(plain.modules) == {"up"}
    assert labels(small(overrides={"*ate": DOWN}), model) == {"up": "1.58/8", "gate": "3/-"}


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 64))


def test_a_saved_plan_is_used_as_it_is(skeleton, tmp_path, razor):
    plan = small(overrides={"*.down_proj": DOWN}, exclude=["*.layers.0.*"]).plan(skeleton)
    path = tmp_path / "plan.yaml"
    plan.save(path)
    recipe = build(composed("size", ["quant=plan", f"quant.plan={path}", "model=tiny_llama"]).quant)
    assert isinstance(recipe, PlanFile) and recipe.name == "plan"
    assert recipe.w_a_kv == "W1.58..16-A8-KV16"  # no model has been seen
    assert recipe.plan(skeleton).to_dict() == plan.to_dict()
    down, others = 128 * 64, 2 * 64 * 64 + 2 * 32 * 64 + 2 * 128 * 64  # weights of a layer
    mean = (16 * (down + others) + 3 * (3 * down + 1.58 * others)) / (4 * (down + others))
    assert recipe.w_a_kv == f"W{mean:.2f}-A8-KV16"
    assert PlanFile("x", plan.to_dict()).plan(skeleton).to_dict() == plan.to_dict()
    other = model_source(
        composed("size", ["model=tiny_llama", "model.architecture.num_hidden_layers=2"])
    ).skeleton()
    told = r"names 'model\.layers\.2\.self_attn\.q_proj' and 13 others of its 30 .* plan of another model\?"
    with pytest.raises(RazorError, match=told):
        recipe.plan(other)
    assert "cannot be read" in razor("size", "quant=plan", "quant.plan=nowhere.yaml").problem
    assert "quant.plan has no default" in razor("size", "quant=plan").problem


def test_a_plan_whose_kv_format_does_not_fit(skeleton):
    plan = small().plan(skeleton)
    with pytest.raises(RazorError, match=r"Group 32 does not divide the 16 inputs of '.*KV, head_dim"):
        PlanFile("x", Plan(plan.modules, Integer(8, 32))).plan(skeleton)
