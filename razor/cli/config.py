"""From overrides to objects: composing `conf/`, and building what it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from razor.errors import RazorError
from razor.spec import read
from razor.storage import digest


def conf_dir() -> Path:
    """Where the shipped configuration lies: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def build(node: Any) -> Any:
    """Instantiate a config node; everything in it arrives as plain Python data."""
    return instantiate(node, _convert_="all")


def composed(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a verb."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose(verb, list(overrides))
    for key, default in yaml.safe_load((conf_dir() / f"{verb}.yaml").read_text(encoding="utf-8")).items():
        if isinstance(default, bool):  # a switch: nothing else would be noticed
            read(bool, config[key], key)
    return config


STATED = ("architecture", "processors")
"""What a model's YAML says of the model itself, with weights or without."""


def model_source(config: DictConfig) -> Any:
    """The model source of a config: its own, or random weights in its architecture."""
    from razor.models import RandomModel

    model = config.model
    if model.weights == "random":
        if model.architecture is None:
            raise RazorError(f"model.weights=random needs an architecture, which model={model.name} lacks.")
        fields: Any = {
            key: OmegaConf.to_container(model[key], resolve=True) for key in STATED if model.get(key)
        }
        return RandomModel(model.name, **fields)
    if model.weights != "pretrained":
        raise RazorError(f"model.weights='{model.weights}'. Choices: pretrained, random.")
    return build(model.source)


def quantization(config: DictConfig, find: bool = True) -> Any:
    """What a config's `quant` says, a recipe or a plan.

    Args:
        config: of a verb.
        find: whether a plan that is to be found (quant=auto_*) is; if not, one of the same size stands in for it.

    Raises:
        RazorError: `recipe=FILE` was given, but nothing reads it.
    """
    parts = [config.get("quant") or {}, config.get("distill") or {}]
    if config.get("recipe") is not None and not any("recipe" in part for part in parts):
        raise RazorError(
            f"recipe={config.recipe} is read by quant=recipe and distill=recipe alone: give one."
        )
    from razor.cli.allocate import found_plan, is_open, stand_in

    if not is_open(config):
        return build(config.quant)
    return found_plan(config) if find else stand_in(config)


def about(config: DictConfig, recipe: Any, origin: str) -> dict[str, str | None]:
    """What a compressed model is called by cards and tables: model, recipe, where both come from, what was done."""
    told = {key: config.model.get(key) for key in ("base", "licence", "note")}
    return {"model": config.model.name, "quant": recipe.name, "origin": origin} | told


def from_recipe(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """`${from_recipe:key,default}`: a key of the file given as `recipe=FILE`, or the default without one."""
    path = OmegaConf.select(_root_, "recipe")
    if path is None:
        return default
    from razor.recipe import Recipe  # and torch with it, which most commands that compose can do without

    return Recipe.load(path).to_dict()[key]


def trained_on(*, _root_: DictConfig) -> str | None:
    """`${trained_on:}`: names the data of a config, other for other samples or another held-out part.

    None where there is no data. How rows are read and in which order they come is not part of it.
    """
    data = OmegaConf.select(_root_, "data")
    if data is None:
        return None
    source = OmegaConf.to_container(data.source, resolve=True)
    return digest([source, data.held_out])


OmegaConf.register_new_resolver("from_recipe", from_recipe, replace=True)
OmegaConf.register_new_resolver("trained_on", trained_on, replace=True)
