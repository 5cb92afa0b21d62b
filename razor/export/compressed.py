"""A compressed model, opened: what every exporter starts from.

Exports begin where training ended, at the packed folder: its codes are the student's, proven when it was written.
Nothing here knows a latent weight, so no exporter can round a second time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.packed import load_packed, load_tokenizer
from razor.export.packed_files import is_packed, read_card
from razor.models.task import auto_class, task_of
from razor.quant import CodedWeight, Codes, Format, ModelSize, Plan, measure
from razor.storage import REPORT, digest, file_digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


DISTILLED, ROUNDED, STARTED = "distilled", "rounded", "started"
"""What `about` says of the origin of a packed model."""

HOW = {
    DISTILLED: "quantization-aware distillation",
    ROUNDED: "plain rounding, without training",
    STARTED: "GPTQ on a little text, without training",
}


@dataclass(frozen=True)
class Weight:
    """One quantized weight of a compressed model.

    Attributes:
        names: what the plan and Transformers call its modules, without `.weight`; more than one if tied.
        shape: of the weight.
        format: how its codes are read.
        activations: format of the inputs of the first of its modules; None: 16-bit.
        coded: the packed tensors.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    format: Format
    activations: Format | None
    coded: CodedWeight

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def codes(self) -> Codes:
        """Codes [rows, columns], unpacked anew at each call."""
        return self.coded.unpacked()

    def decoded(self) -> Tensor:
        """The weight in fp32, in its own shape: the numbers that codes and scales stand for."""
        return self.coded.view.back(self.format.decode(self.codes), self.shape)


@dataclass
class Compressed:
    """A packed folder, opened.

    Attributes:
        folder: the packed folder.
        plan: formats of all its weights.
        compute_dtype: of the student's forward pass.
        config: of the architecture, without its quantization.
        about: model, quant, W-A-KV, base and licence, as far as they are known.
        report: report.json of the run it came from; empty without one.
    """

    folder: Path
    plan: Plan
    compute_dtype: torch.dtype
    config: PretrainedConfig
    about: Mapping[str, str]
    report: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, run: Path) -> Compressed:
        """Open the packed model of a run folder, or a packed folder; weights are loaded when they are asked for.

        Raises:
            RazorError: there is none, or it is damaged.
        """
        folder = packed_folder(run)
        folder = folder if folder.name else folder.resolve()  # of "." the folder above would be itself
        card = read_card(folder)
        distilled = card.about.get("origin") == DISTILLED
        report = _report(folder) if distilled else {}
        return cls(folder, card.plan, card.compute_dtype, card.config, card.about, report)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, on coded layers, in evaluation mode on the CPU."""
        return load_packed(self.folder)[0]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer, for which no weight is loaded; None if it reads no text."""
        return None if task_of(self.config) == "images" else load_tokenizer(self.folder)

    @cached_property
    def digest(self) -> str:
        """Of the packed weights: exports of one model have it in common."""
        return digest([file_digest(path) for path in sorted(self.folder.glob("*.safetensors"))])

    @property
    def how(self) -> str:
        """What was done to the base, in words."""
        return HOW.get(self.about.get("origin", ""), "quantization")

    @property
    def name(self) -> str:
        """Of files and titles: model and quantization."""
        return "-".join(self.about[key] for key in ("model", "quant") if key in self.about) or "model"

    def weights(self) -> Iterator[Weight]:
        """Every weight with a format in the plan, a tied one once; also those in 16 bits (`Float16`)."""
        named: dict[int, list[str]] = {}
        owners: dict[int, CodedWeight] = {}
        for path, module in self.model.named_modules(remove_duplicate=False):
            if isinstance(module, CodedWeight):
                name = _planned_name(path)
                named.setdefault(id(module), []).append(name)
                owners[id(module)] = module
        for key, names in named.items():
            coded = owners[key]
            yield Weight(
                tuple(names), coded.shape, coded.format, self.plan.modules[names[0]].activations, coded
            )

    def others(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter that no entry of the plan covers (norms, biases), by its Transformers name."""
        yield from self.model.named_parameters()

    @cached_property
    def size(self) -> ModelSize:
        """Exact bits of the model, by Razor's own format."""
        with torch.device("meta"):
            skeleton = auto_class(self.config).from_config(self.config)
        return measure(skeleton, self.plan)


def packed_folder(run: Path) -> Path:
    """The packed folder that a path means: itself, that of a run, or that of an export.

    Raises:
        RazorError: there is none.
    """
    folder = next((f for f in (run, run / "packed") if is_packed(f)), None)
    if folder is None:
        raise RazorError(f"run='{run}' holds no packed model (a finished run has one in its packed/ folder).")
    return folder


def _planned_name(path: str) -> str:
    """`a.b.coded` is the weight of `a.b`; `a.b.coded_<name>` its parameter `<name>`."""
    owner, _, slot = path.rpartition(".")
    attribute = slot.removeprefix("coded").lstrip("_")
    return f"{owner}.{attribute}".strip(".") if attribute else owner


def _report(packed: Path) -> dict[str, Any]:
    """report.json of the run that a packed folder or an export lies in; empty if there is no whole one."""
    for run in (packed.parent, packed.parent.parent):
        try:
            found = json.loads((run / REPORT).read_text(encoding="utf-8"))
            rows = [{key: row[key] for key in ROW} for row in found["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if rows and all(isinstance(row["tasks"], dict) for row in rows):
            return dict(found)
    return {}


ROW = ("name", "w_a_kv", "tasks", "average", "perplexity", "kl")
"""What a card shows of a row of the report."""
