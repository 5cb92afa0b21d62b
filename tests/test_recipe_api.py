"""A whole recipe in four forms, and what a loop of one's own does with it: quantize, group, save, load."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import razor
from razor.cli import composed, model_source
from razor.distill import EAKLD, CrossEntropy, Objective
from razor.errors import RazorError
from razor.models import make_student
from razor.quant import Float16, Integer, LearnedScale, RowMix, Ternary
from razor.recipe import PlanFile, Quantized, QuantRecipe, Recipe

INT4, INT8 = ({"kind": "Integer", "width": width, "group": 32} for width in (4, 8))
PLAIN: dict[str, Any] = {
    "name": "mine",
    "compute_dtype": "float32",
    "quant": {
        "weights": {"kind": "RowMix", "high": INT4, "low": {"kind": "Ternary", "group": 32}, "fraction": 0.5},
        "embedding": INT4,
        "activations": INT8,
        "kv_cache": {"kind": "Integer", "width": 8, "group": 16},
        "overrides": {
            "*.down_proj": {"weights": {"kind": "Integer", "width": 3, "group": 64}, "activations": None}
        },
        "exclude": ["*.layers.0.*"],
    },
    "distill": {
        "losses": {"task": {"kind": "CrossEntropy"}, "eakld": {"kind": "EAKLD", "k": 16}},
        "weights": {"task": 0.1, "eakld": 2},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def source() -> Any:
    return model_source(composed("size", ["model=tiny_llama"]))


def in_python() -> Recipe:
    quant = QuantRecipe(
        "mine",
        weights=RowMix(Integer(4, 32), Ternary(32), 0.5),
        embedding=Integer(4, 32),
        activations=Integer(8, 32),
        kv_cache=Integer(8, 16),
        overrides={"*.down_proj": {"weights": Integer(3, 64), "activations": None}},
        exclude=["*.layers.0.*"],
    )
    losses = Objective({"task": CrossEntropy(), "eakld": EAKLD(16)}, {"task": 0.1, "eakld": 2.0})
    return Recipe(name="mine", quant=quant, distill=losses, compute_dtype="float32")


def test_yaml_json_dict_and_python_are_one(tmp_path: Path, source: Any) -> None:
    recipe = razor.Recipe.load(PLAIN)
    (tmp_path / "by_hand.yaml").write_text(yaml.safe_dump(PLAIN))
    (tmp_path / "by_hand.json").write_text(json.dumps(PLAIN))
    recipe.save(tmp_path / "saved.yaml")
    recipe.save(str(tmp_path / "saved.json"))
    same: list[Any] = [in_python(), Recipe(**PLAIN), recipe.to_dict(), recipe]
    same += [
        path
        for name in ("by_hand", "saved")
        for path in (tmp_path / f"{name}.yaml", str(tmp_path / f"{name}.json"))
    ]
    plan = recipe.quant.plan(source.skeleton()).to_dict()  # type: ignore[union-attr]
    for other in map(Recipe.load, same):
        assert other.to_dict() == recipe.to_dict()
        assert other.quant.plan(source.skeleton()).to_dict() == plan  # type: ignore[union-attr]
    assert recipe.dtype == torch.float32 and Recipe.load(recipe) is recipe


def test_a_part_alone_is_a_recipe(source: Any) -> None:
    quant, distill = ({"name": "x", part: PLAIN[part]} for part in ("quant", "distill"))
    assert Recipe.load(quant).distill is None and Recipe.load(distill).quant is None
    assert Recipe.load(quant).compute_dtype == "bfloat16"
    for plain in (quant, distill):
        assert Recipe.load(Recipe.load(plain).to_dict()).to_dict() == Recipe.load(plain).to_dict()
    with pytest.raises(RazorError, match="'x' says neither quant nor distill"):
        Recipe("x")
    with pytest.raises(RazorError, match="'x' has no quant section"):
        razor.quantize(source.load(torch.bfloat16), distill)


def test_a_plan_can_stand_in_a_recipe(source: Any, tmp_path: Path) -> None:
    plan = Recipe.load(PLAIN).quant.plan(source.skeleton())  # type: ignore[union-attr]
    recipe = Recipe.load({"name": "x", "quant": {"plan": plan.to_dict()}})
    recipe.save(tmp_path / "recipe.yaml")
    again = Recipe.load(tmp_path / "recipe.yaml").quant
    assert isinstance(again, PlanFile) and again.plan(source.skeleton()).to_dict() == plan.to_dict()
    plan.save(tmp_path / "plan.yaml")
    other = Recipe.load({"name": "x", "quant": {"plan": str(tmp_path / "plan.yaml")}})
    assert other.to_dict() == recipe.to_dict()


def test_losses_of_weight_zero_are_gone() -> None:
    distill = {"losses": PLAIN["distill"]["losses"], "weights": {"task": 0, "eakld": 1}}
    assert list(Recipe.load({"name": "x", "distill": distill}).to_dict()["distill"]["losses"]) == ["eakld"]


@pytest.mark.parametrize("name", ["keys", "a.b", "", "training"])
def test_names_that_a_loss_cannot_have(name: str) -> None:
    distill = {"losses": {name: {"kind": "CrossEntropy"}}, "weights": {name: 1}}
    with pytest.raises(RazorError, match=rf"distill\.losses\.{name}: a loss cannot have this name"):
        Recipe.load({"name": "x", "distill": distill})


def test_a_file_s_errors_begin_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for text, words in (
        ("name: x\nqunat: {}", r"recipe\.yaml: qunat is unknown\. Did you mean 'quant'\?"),
        ("name: x\nname: y", r"recipe\.yaml cannot be read: 'name' is there twice, again in line 2\.$"),
        ("name: [", r"recipe\.yaml cannot be read: .*line 1"),
        ("- 1", r"recipe\.yaml: this is no mapping"),
        ("", r"recipe\.yaml: this is no mapping"),
    ):
        path.write_text(text)
        with pytest.raises(RazorError, match=words) as problem:
            Recipe.load(path)
        assert "\n" not in str(problem.value) and str(problem.value).count("recipe.yaml") == 1
    twice = tmp_path / "twice.json"
    twice.write_text('{"name": "x", "name": "y"}')
    with pytest.raises(RazorError, match=r"twice\.json cannot be read: 'name' is there twice"):
        Recipe.load(twice)
    with pytest.raises(
        RazorError, match=r"There is no file '.*recpe\.yaml'\. In that folder: recipe\.yaml, twice\.json"
    ):
        Recipe.load(tmp_path / "recpe.yaml")
    with pytest.raises(RazorError, match=r"ends in '\.toml'\. Choices: \.yaml, \.yml, \.json"):
        Recipe.load(tmp_path / "recipe.toml")
    with pytest.raises(RazorError, match=r"ends in '\.txt'"):
        in_python().save(tmp_path / "recipe.txt")
    with pytest.raises(RazorError, match="A recipe is a file, a mapping or a Recipe, not int"):
        Recipe.load(3)  # type: ignore[arg-type]


def test_quantize_is_what_a_run_does(source: Any) -> None:
    """In place, with no copy, and the student of the main job bit for bit."""
    teacher = source.load(torch.bfloat16)
    recipe = Recipe.load(PLAIN)
    expected = make_student(teacher, recipe.quant.plan(source.skeleton()), torch.float32)  # type: ignore[union-attr]
    weight = teacher.model.layers[1].mlp.up_proj.weight
    student = razor.quantize(teacher, recipe)
    assert student is teacher and student.model.layers[1].mlp.up_proj.weight is weight
    assert weight.dtype == torch.float32 and not student.training
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(student(input_ids=ids).logits, expected(input_ids=ids).logits)
    with pytest.raises(RazorError, match="quantized already"):
        razor.quantize(copy.deepcopy(student), recipe)


def test_a_model_that_cannot_be_quantized_is_left_as_it_was(source: Any) -> None:
    model = source.load(torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    kv = copy.deepcopy(PLAIN) | {"quant": PLAIN["quant"] | {"kv_cache": INT8}}
    for recipe in (kv, {"name": "x", "quant": PLAIN["quant"] | {"exclude": ["nothing"]}}):
        with pytest.raises(RazorError):
            razor.quantize(model, recipe)
    assert not hasattr(model, "razor") and type(model.lm_head) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_models_of_plain_torch() -> None:
    model = nn.Sequential(nn.Conv1d(32, 8, 2), nn.Linear(64, 8))
    recipe = {"name": "x", "quant": PLAIN["quant"] | {"kv_cache": None, "overrides": {}, "exclude": ["1"]}}
    plan = razor.quantize(model, recipe).razor.plan
    assert isinstance(plan.modules["0"].weights, RowMix) and isinstance(plan.modules["1"].weights, Float16)


def test_save_and_load(source: Any, tmp_path: Path) -> None:
    """Of a copy, after training, as one's own loop would."""
    student = copy.deepcopy(razor.quantize(source.load(torch.bfloat16), PLAIN))
    assert isinstance(student.razor, Quantized) and student.razor.recipe.name == "mine"
    ids = torch.arange(30)[None]
    optimizer = torch.optim.AdamW(razor.parameter_groups(student, 1e-3, 0.0))
    student(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    razor.save(student, source.tokenizer(), tmp_path / "small")
    model, tokenizer = razor.load(str(tmp_path / "small"))
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, student(input_ids=ids).logits)
    assert tokenizer("abc").input_ids == source.tokenizer()("abc").input_ids
    assert Recipe.load(tmp_path / "small" / "recipe.yaml").to_dict() == Recipe.load(PLAIN).to_dict()
    with pytest.raises(RazorError, match=r"not quantized: razor\.quantize\(model, recipe\) comes first"):
        razor.save(source.load(torch.bfloat16), source.tokenizer(), tmp_path / "other")
    with pytest.raises(RazorError, match="is no packed model"):
        razor.load(tmp_path / "other")


def test_matrices_are_decayed_and_vectors_not(source: Any) -> None:
    student = razor.quantize(source.load(torch.bfloat16), PLAIN)
    matrices, vectors = razor.parameter_groups(student, learning_rate=2e-3, weight_decay=0.3)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert matrices["lr"] == vectors["lr"] == 2e-3
    assert {p.ndim for p in matrices["params"]} == {2} and {p.ndim for p in vectors["params"]} == {1}
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(student.parameters()))
    student.model.norm.requires_grad_(False)
    assert len(razor.parameter_groups(student, 2e-3, 0.3)[1]["params"]) == len(vectors["params"]) - 1
    assert len(razor.parameter_groups(student, 2e-3, 0.0)) == 1
    with pytest.raises(RazorError, match=r"a copy of a frozen teacher needs requires_grad_\(True\)"):
        razor.parameter_groups(student.requires_grad_(False), 2e-3, 0.3)
    with pytest.raises(RazorError, match="learning_rate=0 must be more than 0"):
        razor.parameter_groups(student, 0, 0.3)


def test_learned_scales_learn_at_their_own_rate(source: Any) -> None:
    learned = {"kind": "LearnedScale", "base": {"kind": "Ternary", "group": 32}, "lr_multiplier": 20}
    quant = PLAIN["quant"] | {"weights": learned, "overrides": {}}
    student = razor.quantize(source.load(torch.bfloat16), {"name": "x", "quant": quant})
    groups = {
        group["lr"]: group for group in razor.parameter_groups(student, 1e-3, 0.1) if group["lr"] > 1e-3
    }
    (scales,) = groups.values()
    assert scales["lr"] == pytest.approx(2e-2) and scales["weight_decay"] == 0.0
    own = [m.log_scale for m in student.modules() if isinstance(m, LearnedScale) and m.log_scale is not None]
    assert len(own) == 21 and {id(p) for p in scales["params"]} == {id(p) for p in own}  # 3 layers of 7
    every = [p for group in razor.parameter_groups(student, 1e-3, 0.1) for p in group["params"]]
    assert len(every) == len({id(p) for p in every}) == len(list(student.parameters()))


def test_importing_razor_is_light() -> None:
    """Torch and Transformers are imported when something of them is asked for; Hydra and Lightning never."""
    code = (
        "import sys, razor; heavy = {'torch', 'transformers'} & set(sys.modules); assert not heavy, heavy; "
        "[getattr(razor, name) for name in razor.__all__]; "
        "assert not {'lightning', 'hydra', 'omegaconf'} & set(sys.modules); print(*dir(razor))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(razor.__all__) < set(done.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'Reciep'"):
        razor.Reciep  # type: ignore[attr-defined]


def test_the_recipe_of_the_document(source: Any) -> None:
    """It is good, every key of a recipe is in it, and what it leaves out is what it says it is by default."""
    text = (Path(__file__).parents[1] / "docs" / "recipe.md").read_text(encoding="utf-8")
    plain = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    recipe = Recipe.load(plain)
    assert set(plain) == set(recipe.to_dict()) and set(plain["quant"]) == set(recipe.to_dict()["quant"])
    plan = razor.quantize(source.load(torch.bfloat16), recipe).razor.plan
    assert isinstance(plan.modules["model.layers.3.mlp.down_proj"].weights, Float16)
    assert plan.modules["model.layers.0.mlp.down_proj"].weights.label == "4"
    assert plan.modules["model.layers.1.mlp.up_proj"].activations is None
    assert plan.modules["model.layers.2.mlp.up_proj"].activations is not None
    for key in ("head", "rest"):
        del plain["quant"][key]
    del plain["compute_dtype"]
    assert Recipe.load(plain).to_dict() == recipe.to_dict()


@pytest.mark.parametrize(
    "weights",
    [
        {"kind": "Ternary", "group": "row"},
        {"kind": "LearnedScale", "base": {"kind": "StretchedElastic", "levels": 4, "group": "row"}},
        {"kind": "RowMix", "high": {"kind": "Integer", "width": 4, "group": 9}, "fraction": 0.37}
        | {"low": {"kind": "Ternary", "group": 9}, "rows": "error"},
    ],
)
def test_a_convolutional_network_learns_in_bf16(weights: dict[str, Any]) -> None:
    """Any torch module, batch norm included."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(144, 10),
    )  # fmt: skip
    eight = {"kind": "Integer", "width": 8, "group": "row"}
    quant = {"weights": weights, "embedding": eight, "activations": eight, "kv_cache": None}
    student = razor.quantize(model, {"name": "conv", "quant": quant}).train()
    optimizer = torch.optim.AdamW(razor.parameter_groups(student, 1e-2, 0.0))
    x, y, losses = torch.randn(16, 3, 8, 8).bfloat16(), torch.randint(0, 10, (16,)), []
    for _ in range(15):
        loss = nn.functional.cross_entropy(student(x).float(), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and student[1].running_mean.dtype == torch.float32
    with pytest.raises(RazorError, match="no attention layer whose KV cache"):
        razor.quantize(nn.Sequential(nn.Linear(9, 8)), {"name": "kv", "quant": quant | {"kv_cache": eight}})


def test_nothing_of_the_users_is_overwritten(tmp_path: Path, source: Any) -> None:
    student, tokenizer = razor.quantize(source.load(torch.bfloat16), PLAIN), source.tokenizer()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    (tmp_path / "file").write_text("words")
    for place in ("mine", "file"):
        with pytest.raises(RazorError, match="is there already and no packed model"):
            razor.save(student, tokenizer, tmp_path / place)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == (tmp_path / "file").read_text() == "words"
    with pytest.raises(RazorError, match="tokenizer=None"):
        razor.save(student, None, tmp_path / "new")
    razor.save(student, tokenizer, tmp_path / "new")
    razor.save(student, tokenizer, tmp_path / "new")  # over an older packed model
