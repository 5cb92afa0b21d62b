"""`teacher=same|cached|MODEL`: who teaches, and the command that would cache what it says."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import DictConfig, OmegaConf

from razor.cli.config import build, conf_dir, model_source
from razor.errors import RazorError, did_you_mean

if TYPE_CHECKING:
    from razor.train.teaching import Teaching

SHAPING = ("model", "data", "trainer", "seed", "recipe", "experiment", "teacher_cache")
"""Keys of a main job that a cache of the teacher can depend on."""

READING = ("workers", "pack", "order", "on_disk")
"""Keys of `data` that say how text becomes rows; a run saved before there were any has none of them."""


def teaching(config: DictConfig, command: str = "") -> Teaching:
    """Models, text and the teacher's way, of the config of a main job.

    Args:
        config: see conf/train.yaml; one that a run saved before there was a choice of teachers has none.
        command: what would make the cache that the config wants.
    """
    from razor.data.reading import Reading
    from razor.data.teacher_cache_kinds import kept_of
    from razor.train.teaching import Cached, Teaching

    model, cached = model_source(config), None
    name = config.get("teacher", "same")
    if name == "cached":
        options: dict[str, Any] = OmegaConf.to_container(config.teacher_cache, resolve=True)  # type: ignore[assignment]
        name = options.pop("teacher")
        folder = config.teacher_targets
        cached = Cached(kept_of(**options), None if folder is None else Path(folder), command)
    elif config.get("teacher_targets") is not None:
        raise RazorError("teacher_targets= is read by teacher=cached alone: give both.")
    return Teaching(
        model=model,
        teacher=model if name == "same" else another(name, config.data),
        source=build(config.data.source),
        sequence_length=config.data.get("sequence_length", 1),  # of images a row is one
        held_out=config.data.held_out,
        seed=config.data.seed,
        settings=build(config.trainer),
        cached=cached,
        reading=Reading(**{key: config.data[key] for key in READING if key in config.data}),
    )


def another(name: str, data: Any = None) -> Any:
    """The source of a teacher that is not the model itself: an option of conf/model, a hub id or a folder.

    Args:
        name: of it.
        data: the `data` section of the run, for a teacher that was trained on it.

    Raises:
        RazorError: it is none of these.
    """
    from razor.models import HubModel

    if (config := teacher_config(name, data)) is not None:
        return model_source(config)
    name = str(name)
    if "/" not in name and not name.startswith((".", "~")) and not Path(name).is_dir():
        choices = ("same", "cached", *_options())
        raise RazorError(
            f"There is no teacher={name}.{did_you_mean(name, choices)} A hub id has a /, a folder too."
        )
    return HubModel(Path(name).name, name)


def teacher_config(name: str, data: Any = None) -> DictConfig | None:
    """The `model` section of an option of conf/model, and the data beside it; None if there is no such option."""
    if name not in (options := _options()):
        return None
    with_data = {} if data is None else {"data": OmegaConf.to_container(data, resolve=True)}
    return OmegaConf.create({"model": OmegaConf.load(options[name])} | with_data)


def _options() -> dict[str, Path]:
    return {path.stem: path for path in (conf_dir() / "model").glob("*.yaml") if path.stem != "hub"}


def cache_command(overrides: Sequence[str], out: str | None = None) -> str:
    """The `razor cache_teacher` line for a main job that was given these overrides."""
    kept = [word for word in overrides if word.lstrip("+~").partition("=")[0].split(".")[0] in SHAPING]
    kept = [word for word in kept if not word.startswith("trainer.") or word.startswith(CACHE_TRAINER)]
    return shlex.join(["razor", "cache_teacher", *kept, *([] if out is None else [f"out={out}"])])


CACHE_TRAINER = ("trainer.compute_dtype=", "trainer.accelerator=")


def overrides_of(folder: Path) -> list[str]:
    """What a run was given on its command line, as Hydra noted it in the run's folder."""
    path = folder / ".hydra" / "overrides.yaml"
    return [str(word) for word in yaml.safe_load(path.read_text()) or []] if path.is_file() else []
