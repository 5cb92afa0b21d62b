"""`razor allocate`, and `quant=auto_*` wherever a config has a quant: from words to a plan that was found."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from razor.cli.config import build, composed, conf_dir, model_source
from razor.cli.standing import CONFIG
from razor.cli.teacher import teaching
from razor.errors import RazorError, did_you_mean

if TYPE_CHECKING:
    from razor.allocate import Automatic, Held, ScoreTable, Search, Space
    from razor.models import ModelSource
    from razor.quant import Format
    from razor.recipe import PlanFile

SETTINGS = ("budget", "unit", "options", "granularity", "fits", "coupled", "swaps", "kl_rows", "check")
"""Keys of the verb that are keys of its quant, too."""


def allocate(overrides: Sequence[str]) -> int:
    """`razor allocate`: the plan that loses least within a budget."""
    from razor.evals.allocation_report import PLAN, Allocated

    config = composed("allocate", overrides)
    if config.out == "":
        raise RazorError("out= is empty: give a folder, or leave it out.")
    automatic = settled(config)
    numbers = {key: _count(config, key) for key in ("interactions", "curve")}
    with redirect_stdout(sys.stderr) if config.json else nullcontext():
        search, table = searching(config, automatic, sum(numbers.values()) > 0)
        found = Allocated.of(search, table, config.model.name, **numbers)
        name = f"{config.model.name}_{automatic.name}"
        folder = Path("runs/allocate") / name if config.out is None else Path(config.out)
        written = found.write(folder, model_source(config))
    if config.json:
        print(json.dumps(found.summary() | {"plan": str(folder / PLAN)}))
        return 0
    print("\n".join([found.text(), *(f"wrote {path}" for path in written)]))
    print(f"use      quant=plan quant.plan={folder / PLAN}")
    return 0


def settled(config: DictConfig) -> Automatic:
    """What is to be found, by the keys of the verb and of its quant.

    Raises:
        RazorError: a value outside its choices, or a quant that leaves nothing open.
    """
    from razor.allocate import Automatic

    if not is_open(config):
        name = config.quant.get("name")
        raise RazorError(
            f"quant={name} leaves nothing to be found: quant=auto_2p79, budget=... for another size."
        )
    given = {key: config[key] for key in SETTINGS}
    quant = OmegaConf.create({"model": config.model, "quant": config.quant, "score": config.score})
    named = config.quant.budget, config.quant.unit
    OmegaConf.update(quant, "quant", given, merge=True)
    if named != (config.budget, config.unit):
        unit = "" if config.unit == "code_bits" else f"_{config.unit}"
        quant.quant.name = f"auto_{config.budget}{unit}".replace(".", "p")
    found = build(quant).get("quant")
    assert isinstance(found, Automatic)
    return found


def searching(config: DictConfig, automatic: Automatic, measures: bool = False) -> tuple[Search, ScoreTable]:
    """A search, and its table of scores, measured if it has to be; arguments and errors are those of `ready`."""
    search, kept = ready(config, automatic, measures)
    return search, search.table() if kept is None else kept


def ready(config: DictConfig, automatic: Automatic, measures: bool) -> tuple[Search, ScoreTable | None]:
    """A search that has its text, and the table that was given (scores=), if one was.

    Args:
        config: of a verb, with its text.
        automatic: what is to be found.
        measures: whether true KL will be wanted for more than `automatic` says.

    Raises:
        RazorError: what does not fit; everything that can be known from shapes is said before weights are loaded.
    """
    from razor.allocate import ScoreTable, Search, Text
    from razor.data.packing import PackedRows
    from razor.storage import cache_dir

    source = model_source(config)
    space = space_of(config, source, automatic)
    given = config.get("scores")
    kept = None if given is None else ScoreTable.load(Path(str(given)))
    told = teaching(config)
    source.prepare()
    if kept is not None:
        kept.check(space, source.fingerprint(), f"scores={given}")
        automatic.answer(space, kept)
    text, device = Text(), told.settings.device
    if measures or automatic.check or automatic.swaps or (kept is None and automatic.score.rows):
        if source.task != "text":
            raise RazorError(
                f"model={source.name} reads {source.task}, and score={automatic.score.name} or true KL (check, "
                "swaps, curve, interactions) is measured on text: score=weight_error check=0 reads weights alone."
            )
        told.check()
        corpus = told.corpus()
        train, held_out = corpus.train, corpus.held_out
        assert isinstance(train, PackedRows) and isinstance(held_out, PackedRows)
        text = Text.of(train, held_out, automatic.check, told.seed)

    def load() -> Any:
        from torch import nn

        return nn.Module.to(source.load(told.settings.dtype), device)

    where = cache_dir() / "allocations", device.type
    search = Search(automatic, space, source.fingerprint(), load, told.settings.dtype, text, *where)
    return search, kept


def space_of(config: DictConfig, source: ModelSource, automatic: Automatic) -> Space:
    """What may be decided about a model, from shapes alone."""
    fit = gguf_fit(config) if automatic.fits == "gguf" else None
    return automatic.space(source.skeleton(), named_formats(automatic.options, config), fit)


def named_formats(names: Sequence[str], config: DictConfig) -> dict[str, Format]:
    """Formats by the names of their files in conf/quant/format, with the groups of the model.

    Raises:
        RazorError: there is none of that name.
    """
    known = [path.stem for path in (conf_dir() / "quant" / "format").glob("*.yaml")]
    found = {}
    for name in names:
        if name not in known:
            raise RazorError(f"options: there is no format '{name}'.{did_you_mean(str(name), known)}")
        node = composed("formats", [f"+quant/format@format={name}"]).format
        found[name] = build(OmegaConf.create({"model": config.model, "format": node}))["format"]
    return found


def gguf_fit(config: DictConfig) -> Any:
    """How `export=gguf` would hold a format: in the smallest block type, with groups of 256 where that helps.

    Args:
        config: whose exporter's types are taken; those of conf/export/gguf.yaml if it has none for GGUF.
    """
    from razor.allocate import Held
    from razor.export.gguf.blocks import BlockType
    from razor.export.gguf.holding import holder

    own = (config.get("export") or {}).get("gguf") or composed("export", ["run=.", "export=gguf"]).export.gguf
    types = build(own).types

    def held(format: Format, columns: int) -> Held | None:
        found = []
        for own in (format, _in_groups_of(format, 256)):
            block = None if own is None else holder(own, columns, types)
            if own is not None and isinstance(block, BlockType):
                found.append(Held(own, block.name, 8 * block.bytes / block.size))
        return min(found, key=lambda each: each.bits, default=None)

    return held


def _in_groups_of(format: Format, group: int) -> Format | None:
    """The same format with another group, if it has one that differs."""
    from razor.quant import Format as Base

    spec = format.spec()
    if not isinstance(spec.get("group"), int) or spec["group"] % group == 0:
        return None
    return Base.from_spec(spec | {"group": group})


def is_open(config: DictConfig) -> bool:
    """Whether the quant of a config leaves a plan to be found (quant=auto_*)."""
    return str(config.quant.get("_target_", "")).endswith("Automatic")


def stand_in(config: DictConfig) -> PlanFile:
    """A plan of the size that would be found, from shapes alone."""
    from razor.recipe import PlanFile

    automatic = build(config.quant)
    return PlanFile(
        automatic.name, automatic.stand_in(space_of(config, model_source(config), automatic)).plan
    )


def found_plan(config: DictConfig, folder: Path | None = None) -> PlanFile:
    """The plan of a `quant=auto_*`, found now or kept.

    Args:
        config: of a verb; if it has no text of its own (razor size), that of `razor allocate` is looked at.
        folder: of a run, which keeps its plan and what it was found by.
    """
    from razor.evals.allocation_report import FOLDER, PLAN, Allocated
    from razor.recipe import PlanFile

    automatic = build(config.quant)
    if folder is None:
        automatic.check = 0  # nobody would read it
    elif (kept := folder / FOLDER / PLAN).is_file() and (folder / CONFIG).is_file():
        return PlanFile(automatic.name, kept)
    if "data" not in config or "trainer" not in config:
        config = _with_text(config)
    with redirect_stdout(sys.stderr):
        search, table = searching(config, automatic)
        found = Allocated.of(search, table, config.model.name)
    if folder is not None:
        found.write(folder / FOLDER, model_source(config))
        print(found.text(), flush=True)
    return PlanFile(automatic.name, found.answer.plan)


def _with_text(config: DictConfig) -> DictConfig:
    """A config with model and quant of another, and the text that `razor allocate` looks at by default."""
    whole = composed("allocate", [])
    OmegaConf.set_struct(whole, False)
    for key in ("model", "quant", "score", "data", "trainer", "seed"):
        if key in config:
            whole[key] = config[key]
    return whole


def _count(config: DictConfig, key: str) -> int:
    from razor.spec import read

    number: int = read(int, config[key], key)
    if number < 0:
        raise RazorError(f"{key}={number} must be at least 0.")
    return number
