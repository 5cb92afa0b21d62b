"""Teachers that Razor trains itself: before a run that needs one, and kept after the run that trained it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from razor import processes
from razor.cli.config import build, composed, model_source, quantization
from razor.cli.teacher import teacher_config
from razor.errors import RazorError

if TYPE_CHECKING:
    from razor.models import TrainedModel

KEEP = "keep_as_teacher"
"""Key of a config whose 16-bit result is kept where its model is looked for."""


def train_first(config: DictConfig) -> None:
    """Train the models of a run that Razor trains itself and has not yet; each in a folder of the cache.

    An interrupted training goes on where it was when the run is asked for again.

    Raises:
        RazorError: training came to nothing.
    """
    from razor.cli.job import attempt

    if processes.started():  # several processes would train several; `TrainedModel.prepare` says what to do
        return
    for needed, source in _missing(config):
        print(
            f"model={source.name} is not trained yet on this data: that comes first "
            f"(experiment={source.experiment}, kept in {source.folder}).",
            flush=True,
        )
        outer = GlobalHydra.instance().hydra
        try:
            code = attempt(
                _training(config, needed, source), source.folder.parent / "runs" / source.folder.name
            )
        finally:
            GlobalHydra.instance().hydra = outer  # of the run that waits
        if code or not source.is_there:
            raise RazorError(
                f"model={source.name} was not trained (exit code {code}): the same command goes on."
            )


def check_keep(config: DictConfig) -> None:
    """Find, before a run, why its result cannot be kept as a teacher, if its config wants that.

    Raises:
        RazorError: its model is none that Razor trains, a format of its plan has less than 16 bits, or the folder
            that is kept is not written.
    """
    if not config.get(KEEP):
        return
    from razor.export.dense import Dense
    from razor.models import TrainedModel
    from razor.quant import Float16

    source = build(OmegaConf.select(config, "model.source"))
    if not isinstance(source, TrainedModel):
        raise RazorError(
            f"{KEEP}=true is for models that Razor trains itself (a conf/model/*.yaml with source "
            f"razor.models.TrainedModel, as resnet18), and model={config.model.name} is none."
        )
    recipe = quantization(config, find=False)
    plan = recipe.plan(source.skeleton())
    odd = [
        n for n, p in plan.modules.items() if not isinstance(p.weights, Float16) or p.activations is not None
    ]
    if odd:
        raise RazorError(
            f"{KEEP}=true keeps a teacher of 16 bits, and quant={recipe.name} gives '{odd[0]}' less: "
            f"quant=w16_a16, or {KEEP}=false."
        )
    if Dense.name not in (config.get("export") or {}):
        raise RazorError(f"{KEEP}=true keeps the folder that export=dense writes: export={Dense.name}.")


def keep(config: DictConfig, folder: Path) -> None:
    """Keep the model of a finished run, if its config wants that, where the model's YAML finds it."""
    if not config.get(KEEP):
        return
    from razor.export.dense import Dense
    from razor.storage import EXPORTS
    from razor.train.facts import read_environment

    source = build(config.model.source)
    before = " in place of the one before" if source.is_there else ""
    source.keep(folder / EXPORTS / Dense.name, read_environment(folder)["data"])
    print(f"kept     {source.folder}{before} (model={source.name} finds it)", flush=True)


def _missing(config: DictConfig) -> Iterator[tuple[DictConfig, TrainedModel]]:
    """Models of a run that are to be trained first: what holds their `model` section, and their source."""
    from razor.models import TrainedModel

    for needed in (config, teacher_config(config.get("teacher", "same"), config.get("data"))):
        if needed is None or OmegaConf.select(needed, "model.source") is None:
            continue
        source = model_source(needed)
        if isinstance(source, TrainedModel) and not source.is_there:
            yield needed, source


def _training(config: DictConfig, needed: DictConfig, source: TrainedModel) -> DictConfig:
    """The config of the run that trains a model: its experiment, on the data of the run that waits."""
    inner = composed("train", [f"experiment={source.experiment}", "logger=csv"])
    OmegaConf.set_struct(inner, False)
    rows: Any = inner.data.rows_per_batch
    inner.model = OmegaConf.to_container(needed.model, resolve=True)
    inner.model.weights = "random"
    inner.data = OmegaConf.to_container(config.data, resolve=True)
    inner.data.rows_per_batch, inner.data.seed = rows, inner.seed
    inner.trainer.accelerator = config.trainer.accelerator
    return inner
