"""The commands: `razor <verb> key=value ...`, and the main job behind `train.py`.

This is the one module that knows Hydra. A verb's config is composed from `conf/<verb>.yaml` and the
overrides, its `_target_`s are instantiated, and plain objects go on to the library. Whatever a person got
wrong, a name, a key, a value, ends in one line on stderr and exit code 2; `debug=true` shows the traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from razor.errors import RazorError, did_you_mean
from razor.storage import atomic_write, disk_full

BAD_INPUT = 2
INTERRUPTED = 130


def conf_dir() -> Path:
    """Where the shipped configuration lies: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "conf"


def guarded(job: Callable[[], int | None], argv: Sequence[str]) -> int:
    """Run a command; return its exit code, with bad input told in one line."""
    try:
        return job() or 0
    except (RazorError, HydraException, OmegaConfBaseException) as error:
        if any(argument.lower() == "debug=true" for argument in argv):
            raise
        print(f"razor: {explain(error)}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        if error.errno != errno.ENOSPC or any(argument.lower() == "debug=true" for argument in argv):
            raise
        where = error.filename or "the run's folder"
        print(f"razor: {disk_full(where)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("razor: interrupted.", file=sys.stderr)
        return INTERRUPTED


def explain(error: BaseException) -> str:
    """One line for an error: our own words where we have some, else Hydra's, with the nearest name."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, RazorError):
            building = re.search(r"Error in call to target .*full_key: (\S+)", str(error), re.S)
            place = building.group(1) if building else ""
            return str(cause) if place in str(cause) else f"{place}: {cause}"
        cause = cause.__cause__ or cause.__context__
    text = " ".join(str(error).split())
    if option := re.search(r"Could not find '(\S+)/(\S+)'", text):
        group, value = option.groups()
        choices = [path.stem for path in (conf_dir() / group).glob("*.yaml")]
        return f"There is no {group}={value}.{did_you_mean(value, choices)} They lie in conf/{group}/."
    if key := re.search(r"Could not override '([\w.]+)'", text):
        _, dot, name = key.group(1).rpartition(".")
        files = conf_dir().rglob("*.yaml") if dot else conf_dir().glob("*.yaml")
        words = {w for path in files for w in re.findall(r"^ *(\w+):", path.read_text(), re.M)}
        words |= {path.name for path in conf_dir().iterdir() if path.is_dir()}
        near = difflib.get_close_matches(name, words, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"There is no key '{key.group(1)}'.{hint} The files in conf/ list the keys of every group."
    if missing := re.search(r"Missing mandatory value: (\S+)", text):
        name = missing.group(1).replace("model.source.", "model.")
        return f"{name} has no default: give it as {name}=... ."
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    reason = "" if inner is error else f" <- {type(inner).__name__}: {' '.join(str(inner).split())}"
    return f"{text}{reason} (see conf/)"


def build(node: Any) -> Any:
    """Instantiate a config node; everything in it arrives as plain Python data."""
    return instantiate(node, _convert_="all")


def composed(verb: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a verb."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(verb, list(overrides))


def model_source(config: DictConfig) -> Any:
    """The model source of a config: its own, or random weights in its architecture."""
    from razor.models import RandomModel

    model = config.model
    if model.weights == "random":
        if model.architecture is None:
            raise RazorError(f"model.weights=random needs an architecture, which model={model.name} lacks.")
        return RandomModel(model.name, OmegaConf.to_container(model.architecture, resolve=True))  # type: ignore[arg-type]
    if model.weights != "pretrained":
        raise RazorError(f"model.weights='{model.weights}'. Choices: pretrained, random.")
    return build(model.source)


def quantization(config: DictConfig) -> Any:
    """What a config's `quant` says, a recipe or a plan.

    Raises:
        RazorError: `recipe=FILE` was given, but nothing reads it.
    """
    parts = [config.get("quant") or {}, config.get("distill") or {}]
    if config.get("recipe") is not None and not any("recipe" in part for part in parts):
        raise RazorError(
            f"recipe={config.recipe} is read by quant=recipe and distill=recipe alone: give one."
        )
    return build(config.quant)


def from_recipe(key: str, default: Any, *, _root_: DictConfig) -> Any:
    """`${from_recipe:key,default}`: a key of the file given as `recipe=FILE`, or the default without one."""
    from razor.recipe import Recipe

    path = OmegaConf.select(_root_, "recipe")
    return default if path is None else Recipe.load(path).to_dict()[key]


OmegaConf.register_new_resolver("from_recipe", from_recipe, replace=True)


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
        model=model_source(config),
        model_note=config.model.note,
        recipe=kept.quant if kept and kept.quant else quantization(config),
        objective=kept.distill if kept and kept.distill else build(config.distill),
        source=build(config.data.source),
        sequence_length=config.data.sequence_length,
        rows_per_batch=config.data.rows_per_batch,
        held_out=config.data.held_out,
        data_seed=config.data.seed,
        settings=build(config.trainer),
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


def size(overrides: Sequence[str]) -> int:
    """`razor size`: exact bits of a model under a recipe."""
    import json

    from razor.evals.size_table import size_summary, size_table

    config = composed("size", overrides)
    source, recipe = model_source(config), quantization(config)
    if config.json:
        print(json.dumps(size_summary(source, recipe)))
    else:
        print(size_table(source, recipe))
    return 0


def plan(overrides: Sequence[str]) -> int:
    """`razor plan`: which matrix of a model gets what."""
    import json

    from razor.evals.plan_table import PlanTable

    config = composed("plan", overrides)
    table = PlanTable(model_source(config), quantization(config))
    written = [] if config.out is None else table.write(Path(config.out))
    if config.json:
        print(json.dumps(table.summary()))
    else:
        print("\n".join([table.text(config.full), *(f"wrote {path}" for path in written)]))
    return 0


def chat(overrides: Sequence[str]) -> int:
    """`razor chat`: talk to a packed model."""
    from razor.serve.chat import Chat

    config = composed("chat", overrides)
    options = {key: value for key, value in config.items() if key not in ("run", "prompt", "debug")}
    talk = Chat.open(Path(config.run), **options)  # type: ignore[arg-type]
    if config.prompt is not None:
        talk.answer(str(config.prompt))
    else:
        talk.loop()
    return 0


def formats(overrides: Sequence[str]) -> int:
    """`razor formats`: a table of all number formats."""
    from razor.evals.format_table import decoder_matrices, format_table

    config = composed("formats", overrides)
    names = sorted(path.stem for path in (conf_dir() / "quant" / "format").glob("*.yaml"))
    built = {name: build(composed("formats", [f"+quant/format@format={name}"]).format) for name in names}
    matrices = None
    if config.real:
        source = model_source(config)
        source.prepare()
        matrices = decoder_matrices(source)
    print(format_table(built, matrices, config.model.name))
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "formats": formats,
    "size": size,
    "plan": plan,
    "chat": chat,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The console script."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print("razor <verb> key=value ...\n\nVerbs:")
        for name, verb in VERBS.items():
            print(f"  {name:8s} {(verb.__doc__ or '').splitlines()[0]}")
        print("\nOptions of a verb: conf/<verb>.yaml. The main job: python train.py (conf/train.yaml).")
        return 0

    def job() -> int:
        if words[0] not in VERBS:
            raise RazorError(f"Unknown verb '{words[0]}'.{did_you_mean(words[0], VERBS)}")
        return VERBS[words[0]](words[1:])

    return guarded(job, words)
