"""A run writes the recipe it used; any recipe can be given to a run; a run that goes on needs nothing else."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from razor.recipe import PlanFile, QuantRecipe, Recipe

GIVEN = ("quant=recipe", "distill=recipe")
SPECIAL = (
    "quant=mixed_1p88",
    "quant.overrides={*.down_proj:{weights:{kind:Integer,width:4,group:64},activations:null}}",
    "quant.exclude=[*.layers.0.*]",
    "distill.losses.afd.top=2",
    "distill.weights.task=0",
    "trainer.compute_dtype=float32",
)


def plan_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "packed" / "config.json").read_text())["quantization_config"]["plan"]


def losses_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs" / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return [{key: value for key, value in row.items() if key.startswith("loss")} for row in rows]


@pytest.fixture(scope="module")
def special(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with overrides of every kind."""
    done = make_main_job(tmp_path_factory.mktemp("special"))(*SPECIAL)
    assert done.code == 0, done.err
    return done.folder


def test_a_run_writes_the_recipe_it_used(special: Path) -> None:
    recipe = Recipe.load(special / "recipe.yaml")
    assert recipe.name == "mixed_1p88" and recipe.compute_dtype == "float32"
    assert isinstance(recipe.quant, QuantRecipe) and recipe.quant.exclude == ["*.layers.0.*"]
    assert list(recipe.quant.overrides) == ["*.down_proj"] and recipe.quant.w_a_kv == "W1.88*-A8-KV8"
    assert recipe.distill is not None and recipe.distill.weights == {"eakld": 2.0, "afd": 0.1}
    assert recipe.distill.layer_losses["afd"].top == 2


def test_the_recipe_of_a_run_makes_the_same_run(special: Path, main_job: Any) -> None:
    done = main_job(*GIVEN, f"recipe={special / 'recipe.yaml'}")
    assert done.code == 0, done.err
    assert (done.folder / "recipe.yaml").read_text() == (special / "recipe.yaml").read_text()
    assert plan_of(done.folder) == plan_of(special)
    assert losses_of(done.folder) == losses_of(special)
    packed = Path("packed") / "model.safetensors"
    assert (done.folder / packed).read_bytes() == (special / packed).read_bytes()
    config = yaml.safe_load((done.folder / "config.yaml").read_text())
    assert config["trainer"]["compute_dtype"] == "float32" and config["quant"]["name"] == "mixed_1p88"


def test_a_run_goes_on_without_the_file_it_came_from(special: Path, main_job: Any, tmp_path: Path) -> None:
    """The file is gone and the run's folder was moved: its own copy counts."""
    path = tmp_path / "mine.json"
    Recipe.load(special / "recipe.yaml").save(path)
    folder = main_job.folder()

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with main_job.monkeypatch.context() as patch:
        patch.setattr("razor.train.run.finish", stop)
        assert main_job(*GIVEN, f"recipe={path}", folder=folder).code == 130
    path.unlink()
    moved = folder.rename(tmp_path / "moved")
    done = main_job.resume(moved)
    assert done.code == 0, done.err
    assert plan_of(moved) == plan_of(special)


def test_what_is_given_beside_a_recipe_counts(special: Path) -> None:
    from razor.cli import composed

    words = [f"recipe={special / 'recipe.yaml'}", *GIVEN]
    assert composed("train", words).trainer.compute_dtype == "float32"
    assert composed("train", [*words, "trainer.compute_dtype=bfloat16"]).trainer.compute_dtype == "bfloat16"
    assert composed("train", []).trainer.compute_dtype == "bfloat16"


def test_a_saved_plan_is_in_the_recipe_of_its_run(special: Path, main_job: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan_of(special)))
    done = main_job("quant=plan", f"quant.plan={path}")
    assert done.code == 0, done.err
    recipe = Recipe.load(done.folder / "recipe.yaml")
    assert isinstance(recipe.quant, PlanFile) and recipe.name == "plan"
    assert recipe.quant.to_dict()["plan"] == plan_of(done.folder) == plan_of(special)
    assert "W5.76-A8-KV8" in (done.folder / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (GIVEN, "quant=recipe takes it from a file: say which by recipe=FILE."),
        (["distill=recipe"], "distill=recipe takes it from a file: say which by recipe=FILE."),
        ([*GIVEN, "recipe=nowhere.yaml"], "There is no file 'nowhere.yaml'."),
        (
            ["recipe={distill}"],
            "recipe={distill} is read by quant=recipe and distill=recipe alone: give one.",
        ),
        ([*GIVEN, "recipe={bad}"], "{bad}: quant.weights.group='64' must be a whole number"),
        (["quant=recipe", "recipe={distill}"], "quant=recipe, but '{distill}' has no quant section."),
    ],
)
def test_recipes_that_cannot_be_used(main_job: Any, tmp_path: Path, words: list[str], problem: str) -> None:
    files = {"bad": tmp_path / "bad.yaml", "distill": tmp_path / "distill.yaml"}
    files["bad"].write_text(
        "{name: x, quant: {weights: {kind: Ternary, group: '64'}, embedding: 1, activations: 2, kv_cache: 3}}"
    )
    files["distill"].write_text("{name: x, distill: {losses: {t: {kind: CrossEntropy}}, weights: {t: 1}}}")
    done = main_job(*(word.format(**files) for word in words))
    assert problem.format(**files) in done.problem


def test_the_size_of_a_recipe(special: Path, razor: Callable[..., Any]) -> None:
    words = ("size", "model=tiny_llama", "json=true")
    given = razor(*words, "quant=recipe", f"recipe={special / 'recipe.yaml'}")
    direct = razor(*words, *(word for word in SPECIAL if word.startswith("quant")))
    assert json.loads(given.out) == json.loads(direct.out)
    assert "say which by recipe=FILE" in razor(*words, "quant=recipe").problem
