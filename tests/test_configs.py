"""Every shipped configuration composes and instantiates; new files are found by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from razor import cli
from razor.allocate import Automatic
from razor.data.sources.base import DataSource
from razor.distill import Objective
from razor.evals import Benchmark, Classification
from razor.models import ModelSource
from razor.recipe import PlanFile, QuantRecipe, Recipe
from razor.train.settings import TrainSettings

CONF = cli.conf_dir()
FILES = sorted(CONF.rglob("*.yaml"))
ROOTS = sorted(path.stem for path in CONF.glob("*.yaml"))
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OPTIONS = [
    (path.parent.name, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))
]
PARTS = [
    path.relative_to(CONF)  # published recipes are experiments of their own: tests/test_paper_recipes.py
    for path in FILES
    if len(path.relative_to(CONF).parts) == 3 and path.relative_to(CONF).parts[0] != "experiment"
]

# what a person has to give
VALUES = {
    ("model", "hub"): ["model.id=somewhere/something"],
    ("data", "image_folder"): ["data.source.path=folder"],
    ("data", "local_text"): ["data.source.path=text.txt"],
    ("data", "local_jsonl"): ["data.source.path=chats.jsonl"],
    ("data", "mix"): [
        "data.source.parts.chats.source.path=chats.jsonl",
        "data.source.parts.texts.source.path=text.txt",
    ],
    ("quant", "plan"): ["quant.plan=plan.yaml"],
}

# groups that another option brings along
BESIDE = {"score": ["quant=auto_2p79"]}


def missing_in(config: Any) -> set[str]:
    """Full names of the keys that wait for a value."""

    def search(node: Any, name: str) -> set[str]:
        if isinstance(node, dict):
            return {found for key, value in node.items() for found in search(value, f"{name}.{key}")}
        return {name.lstrip(".")} if node == "???" else set()

    return search(OmegaConf.to_container(config, resolve=False), "")


def recipe_and_plan(folder: Path) -> None:
    """recipe.yaml and plan.yaml, of the defaults, for the options that read them."""
    config = cli.composed("train", ["model=tiny_llama"])
    quant = cli.build(config.quant)
    Recipe("defaults", quant, cli.build(config.distill)).save(folder / "recipe.yaml")
    quant.plan(cli.model_source(config).skeleton()).save(folder / "plan.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_begins_with_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and len(lines[0]) > 10
    assert max(map(len, lines)) <= 120
    yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("root", ROOTS)
def test_every_root_composes(root: str) -> None:
    config = cli.composed(root, [])
    assert missing_in(config) <= {"run", "out", "folder", "repo", "target"}
    assert "debug" in config


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=["=".join(pair) for pair in OPTIONS])
def test_every_option_composes_and_instantiates(
    group: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # for trainer=gpu
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)  # for trainer=eight_gpus
    monkeypatch.setattr("razor.train.settings.installed", lambda package: True)  # for deepspeed_zero2
    monkeypatch.chdir(tmp_path)
    recipe_and_plan(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    given = VALUES.get((group, option), [])
    beside = BESIDE.get(group, [])
    bare = cli.composed("train", [f"{group}={option}", *beside])
    assert missing_in(bare) == {word.partition("=")[0] for word in given}
    given = [*given, "recipe=recipe.yaml"] if option == "recipe" else given
    config = cli.composed("train", [f"{group}={option}", *beside, *given])
    assert not missing_in(config)
    OmegaConf.to_container(config, resolve=True)  # every reference leads somewhere
    assert isinstance(cli.model_source(config), ModelSource)
    kind = PlanFile if option == "plan" else Automatic if "budget" in config.quant else QuantRecipe
    assert isinstance(cli.build(config.quant), kind)
    assert isinstance(cli.build(config.distill), Objective)
    assert isinstance(cli.build(config.trainer), TrainSettings)
    assert isinstance(cli.build(config.evals), Benchmark | Classification)
    assert isinstance(cli.build(config.data.source), DataSource)
    loggers = cli.build(config.logger) or {}
    for make in loggers.values():
        make(folder=tmp_path, name="run")


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_part_instantiates(part: Path) -> None:
    """Files inside a group (number formats, losses, places) can be put where they belong."""
    group, sort, _ = part.parts
    if sort == "places":
        config = cli.composed("train", [f"quant/places@quant={part.stem}"])
        assert isinstance(cli.build(config.quant), QuantRecipe)
        return
    where = {"format": "quant.embedding", "loss": "distill.losses.extra"}[sort]
    add = "+" if sort == "loss" else ""
    config = cli.composed("train", [f"{add}{group}/{sort}@{where}={part.stem}"])
    assert cli.build(OmegaConf.select(config, where)) is not None


@pytest.mark.parametrize("option", [name for group, name in OPTIONS if group == "model" and name != "hub"])
def test_every_model_has_a_size_without_weights(option: str) -> None:
    from razor.evals.size_table import size_summary

    config = cli.composed("size", [f"model={option}"])
    found = size_summary(cli.model_source(config), cli.build(config.quant))
    assert found["model"] == option and found["parameters"] > 0


def test_random_weights_for_any_stated_architecture() -> None:
    from razor.models import RandomModel

    config = cli.composed("train", ["model=qwen3_0p6b", "model.weights=random"])
    assert isinstance(cli.model_source(config), RandomModel)


def test_defaults_are_the_main_job() -> None:
    config = cli.composed("train", [])
    assert (config.model.name, config.quant.name) == ("smollm2_135m", "mixed_2p79")
    assert OmegaConf.to_container(config.distill.weights) == {"task": 0.1, "eakld": 2.0, "afd": 0.1}
    assert config.evals.tasks == ["piqa", "arc_easy", "hellaswag", "lambada_openai", "sciq"]
    assert config.data.source["_target_"].endswith("TeacherMade") and config.trainer.accelerator == "auto"
