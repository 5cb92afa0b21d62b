"""The main job: a config becomes a run, and a run that stopped goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from razor.cli.config import build, conf_dir, quantization
from razor.cli.guard import INTERRUPTED, guarded
from razor.cli.teacher import cache_command, overrides_of, teaching
from razor.errors import RazorError
from razor.storage import atomic_write


def train(config: DictConfig, folder: Path, resume: bool = False) -> int:
    """The main job: compose -> distill -> evaluate -> pack -> report, all in `folder`."""
    from razor.export.folder import RECIPE
    from razor.recipe import Recipe
    from razor.train.job import Job
    from razor.train.run import run_job

    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    own = folder / RECIPE
    kept = Recipe.load(own) if resume and own.is_file() else None  # nothing outside its folder steers a run
    job = Job(
        folder=folder,
        teaching=teaching(config, cache_command(overrides_of(folder), config.get("teacher_targets"))),
        model_note=config.model.note,
        recipe=kept.quant if kept and kept.quant else quantization(config),
        objective=kept.distill if kept and kept.distill else build(config.distill),
        rows_per_batch=config.data.rows_per_batch,
        benchmark=build(config.evals),
        loggers=build(config.logger) or {},
        seed=config.seed,
        config={str(key): value for key, value in plain.items() if key not in ("run", "ckpt", "debug")},
    )
    if not resume:
        with atomic_write(folder / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(config, resolve=True))
    try:
        return run_job(job)
    except KeyboardInterrupt:
        print(f"Stopped. Continue with:\n  python train.py run={folder} ckpt=last", flush=True)
        raise


def resume(argv: Sequence[str]) -> int:
    """`run=FOLDER ckpt=last`: continue a run from its own saved config and newest checkpoint."""
    given = dict(argument.partition("=")[::2] for argument in argv)
    if extra := sorted(set(given) - {"run", "ckpt", "debug"}):
        raise RazorError(
            f"'{extra[0]}' cannot change when a run continues; only run=, ckpt= and debug= go together."
        )
    if given.get("ckpt", "last") != "last":
        raise RazorError(f"ckpt='{given['ckpt']}'. Choices: last.")
    if "run" not in given:
        raise RazorError("ckpt=last continues a run: say which by run=FOLDER (runs/ lists yours).")
    folder = Path(given["run"])
    if not (folder / "config.yaml").is_file():
        raise RazorError(f"run='{folder}' is no run folder: it holds no config.yaml (runs/ lists yours).")
    try:
        config = OmegaConf.load(folder / "config.yaml")
    except Exception as error:  # of the YAML parser, which the file may be any trouble to
        raise RazorError(f"'{folder / 'config.yaml'}' is damaged ({type(error).__name__}).") from error
    if not isinstance(config, DictConfig) or not {"model", "quant", "data", "trainer"} <= set(config):
        raise RazorError(f"'{folder / 'config.yaml'}' is damaged: it does not hold the config of a run.")
    return train(config, folder, resume=True)


def hydra_train() -> int:
    """The main job under Hydra's own command line: overrides, -m sweeps, --help, --cfg job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of being printed and swallowed
    codes = []

    def job(config: DictConfig) -> None:
        # guarded here too: one bad job of a sweep does not stop the others
        folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
        codes.append(guarded(lambda: train(config, folder), sys.argv))
        if codes[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)  # Ctrl-C ends a sweep as well

    hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(job)()
    return max(codes, default=0)
