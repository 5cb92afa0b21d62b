"""The main job: a config becomes a run, and a run that stopped goes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from razor import processes
from razor.cli.allocate import found_plan, is_open
from razor.cli.config import about, build, conf_dir, quantization
from razor.cli.export import exporters_of
from razor.cli.guard import INTERRUPTED, guarded
from razor.cli.launch import WHERE, announce, announced, launch, only_first_talks
from razor.cli.standing import BEGUN, FINISHED, clear, failures_kept, saved_config, standing
from razor.cli.teacher import cache_command, overrides_of, teaching
from razor.cli.trained import check_keep, keep, train_first
from razor.errors import RazorError
from razor.storage import atomic_write


def train(config: DictConfig, folder: Path, resume: bool = False) -> int:
    """The main job: compose -> distill -> evaluate -> pack -> report, all in `folder`."""
    from razor.export.compressed import DISTILLED
    from razor.export.folder import RECIPE
    from razor.recipe import Recipe
    from razor.train.facts import record_environment
    from razor.train.job import Job, check
    from razor.train.run import run_job

    check_keep(config)
    train_first(config)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    own = folder / RECIPE
    kept = Recipe.load(own) if resume and own.is_file() else None  # nothing outside its folder steers a run
    start = build(config.get("start")) or None

    known = kept.quant if kept else None
    quant = known or quantization(config, find=False)

    def held(quant: Any) -> Any:
        return quant if start is None else start.held(quant)

    job = Job(
        folder=folder,
        teaching=teaching(config, cache_command(overrides_of(folder), config.get("teacher_targets"))),
        model_note=config.model.note,
        recipe=held(quant),
        objective=kept.distill if kept and kept.distill else build(config.distill),
        rows_per_batch=config.data.rows_per_batch,
        benchmark=build(config.evals),
        loggers=build(config.logger) or {},
        callbacks=build(config.get("callbacks")) or {},
        seed=config.seed,
        config={str(key): value for key, value in plain.items() if key not in ("run", "ckpt", "debug")},
        about=about(config, quant, DISTILLED),
        exporters=exporters_of(config.get("export")),
        start=start,
    )
    if known is None and is_open(config):
        check(job)  # whatever else is wrong is said before a plan is searched for
        job = replace(job, recipe=held(found_plan(config, folder)))
    if not resume:
        with atomic_write(folder / "config.yaml") as temporary:
            temporary.write_text(OmegaConf.to_yaml(config, resolve=True))
    announce(folder)
    try:
        if job.settings.strategy != "single" and not processes.started():
            return launch(job)
        if processes.rank() == 0:
            record_environment(folder, job.settings.device)
        code = run_job(job)
        if code == 0 and processes.rank() == 0:
            keep(config, folder)
        return code
    except KeyboardInterrupt:
        print(f"Stopped. Continue with:\n  python train.py run={folder} ckpt=last", flush=True)
        raise


def resume(argv: Sequence[str]) -> int:
    """`run=FOLDER ckpt=last`: continue a run from its own saved config and newest checkpoint."""
    given = dict(argument.partition("=")[::2] for argument in argv)
    where = [f"trainer.{key}" for key in WHERE]
    if extra := sorted(set(given) - {"run", "ckpt", "debug", *where}):
        raise RazorError(
            f"'{extra[0]}' cannot change when a run continues; only run=, ckpt=, debug= and where it runs can: "
            f"{', '.join(f'{key}=' for key in where)}."
        )
    if given.get("ckpt", "last") != "last":
        raise RazorError(f"ckpt='{given['ckpt']}'. Choices: last.")
    if "run" not in given:
        raise RazorError("ckpt=last continues a run: say which by run=FOLDER (runs/ lists yours).")
    folder = Path(given["run"])
    config = saved_config(folder)
    for key in set(where) & set(given):
        OmegaConf.update(config, key, yaml.safe_load(given[key]))
    with failures_kept(folder):
        if processes.rank() == 0:
            clear(folder, BEGUN)
        return train(config, folder, resume=True)


def attempt(config: DictConfig, folder: Path) -> int:
    """Begin the run of a config in its folder, continue it, or leave it alone if it is finished."""
    with failures_kept(folder):
        state = standing(folder, config)
        clear(folder, state)
        if state == FINISHED:
            print(f"'{folder}' holds this run, finished: nothing to do (report.md).", flush=True)
            announce(None)
            return 0
        if state == BEGUN:
            return train(saved_config(folder), folder, resume=True)
        return train(config, folder)


def hydra_train() -> int:
    """The main job under Hydra's own command line: overrides, -m sweeps, --help, --cfg job."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from razor.cli.sweep import Sweep, check_plugins, sweep_job

    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come back here instead of being printed and swallowed
    only_first_talks()
    if processes.rank():  # what the first composes is the run of all
        folder = announced()
        return 0 if folder is None else resume([f"run={folder}", "ckpt=last"])
    if processes.started() and {"-m", "--multirun"} & set(sys.argv[1:]):
        raise RazorError(
            "A sweep starts the processes of its jobs itself: without torchrun (trainer.devices=...)."
        )
    check_plugins(sys.argv[1:])
    codes = []

    def job(config: DictConfig) -> float | None:
        folder = Path(os.path.relpath(HydraConfig.get().runtime.output_dir))
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            return sweep_job(config, folder)  # perhaps in another process or on another machine
        codes.append(guarded(lambda: attempt(config, folder), sys.argv))
        if codes[-1] == INTERRUPTED:
            sys.exit(INTERRUPTED)
        return None

    main = hydra.main(config_path=str(conf_dir()), config_name="train", version_base="1.3")(job)
    try:
        return Sweep.follow(main) or max(codes, default=0)
    finally:
        announce(None)  # if nothing was begun (--help, say), nobody waits for it
