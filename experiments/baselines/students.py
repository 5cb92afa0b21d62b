"""A student by a method of rounding after training, ready to be scored.

What differs between methods is what stands in for the decoder's linear weights (and, for AWQ, the norms that its
scaling goes into); everything else is the same: embedding and head, activations, keys and values by the recipe.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from study_library import environment_python

from razor.data.packing import PackedRows
from razor.errors import RazorError
from razor.models import ModelSource, make_student
from razor.quant import Float16, Integer, LearnedScale, StretchedElastic
from razor.recipe import QuantRecipe
from razor.start import GPTQ

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIBRARY = ("awq", "autoround")
METHODS = ("rtn", "gptq", "start", *LIBRARY)
PUBLISHED = partial(GPTQ, follow=0.0, refit=False, passes=0, damping=0.01)
"""GPTQ as the paper has it; `start` is what start=gptq does."""


@dataclass(frozen=True)
class Made:
    """A student and its teacher.

    Attributes:
        student, teacher: on the CPU.
        tokens: of text that the method looked at.
        told: what else it says of itself.
    """

    student: PreTrainedModel
    teacher: PreTrainedModel
    tokens: int = 0
    told: dict[str, Any] = field(default_factory=dict)


def check_format(method: str, name: str, recipe: Any) -> int:
    """Code bits of a recipe's weights, if the library has them: symmetric integers, one width for all.

    Raises:
        RazorError: it has not; such a cell does not exist.
    """
    weights = recipe.weights if isinstance(recipe, QuantRecipe) and not recipe.overrides else None
    base = weights.base if isinstance(weights, LearnedScale) else weights
    if isinstance(base, Integer) and isinstance(base.group, int):
        return base.width
    if isinstance(base, StretchedElastic) and base.levels == 4 and isinstance(base.group, int):
        return 2  # its own four levels, -2..1 times a scale, at the same bits
    raise RazorError(
        f"method={method} has no format like quant={name}: symmetric integers alone. Choices: w4, w3, w2."
    )


@dataclass(frozen=True)
class Maker:
    """Makes students of one model, recipe and text.

    Attributes:
        source: of the model.
        recipe: formats.
        rows: training text.
        seed: of the choice of rows.
        count: rows that are looked at.
        iters: AutoRound's steps a layer.
        library: "on", or the folder of an environment.
    """

    source: ModelSource
    recipe: QuantRecipe
    rows: PackedRows
    seed: int
    count: int
    iters: int
    library: str

    def make(self, method: str, folder: Path) -> Made:
        """A student by `method`; `folder` is for what the library reads and writes."""
        teacher = self.source.load(torch.bfloat16)
        if method in LIBRARY:
            return self._by_library(method, teacher, folder)
        start = PUBLISHED(rows=self.count) if method == "gptq" else GPTQ(rows=self.count)
        recipe = self.recipe if method == "rtn" else start.held(self.recipe)
        student = make_student(teacher, recipe.plan(self.source.skeleton()), torch.bfloat16)
        if method == "rtn":
            return Made(student, teacher)
        done = start(student, start.batches(self.rows, self.seed), teacher)
        return Made(student, teacher, done.tokens, done.to_dict())

    def _by_library(self, method: str, teacher: PreTrainedModel, folder: Path) -> Made:
        bits = check_format(method, self.recipe.name, self.recipe)
        batches = GPTQ(rows=self.count).batches(self.rows, self.seed)  # the rows that GPTQ looks at
        ids, text = (
            torch.cat(x) for x in zip(*((b.input_ids, b.documents >= 0) for b in batches), strict=True)
        )
        folder.mkdir(parents=True, exist_ok=True)
        model, tokenizer = folder / "model", self.source.tokenizer()
        teacher.save_pretrained(model)
        tokenizer.save_pretrained(model)
        save_file({"input_ids": ids, "attention_mask": text.long()}, folder / "rows.safetensors")
        options = {"method": method, "bits": bits, "group": self.recipe.embedding.group, "iters": self.iters}
        (folder / "options.json").write_text(json.dumps(options | {"seed": self.seed}))
        script = Path(__file__).with_name("library.py")
        python = environment_python(self.library)
        if subprocess.run([python, str(script), str(folder)]).returncode:
            raise RazorError(
                f"method={method} failed in the environment of '{python}': its own words are above."
            )
        found = load_file(folder / "weights.safetensors")
        check_grid(found, bits, self.recipe.embedding.group)
        decoded = self.source.load(torch.bfloat16)
        decoded.load_state_dict(found, strict=False)
        recipe = QuantRecipe(
            self.recipe.name, Float16(), self.recipe.embedding, self.recipe.activations, self.recipe.kv_cache
        )
        student = make_student(decoded, recipe.plan(self.source.skeleton()), torch.bfloat16)
        return Made(student, teacher, int(text.sum()), json.loads((folder / "told.json").read_text()))


def check_grid(weights: dict[str, torch.Tensor], bits: int, group: int) -> None:
    """Raise RazorError if a group of a linear layer's weights has more values than its bits can tell apart."""
    for name, weight in weights.items():
        if weight.ndim == 2:
            ordered = weight.float().unflatten(-1, (-1, group)).sort(-1).values
            values = 1 + int((ordered.diff(dim=-1) != 0).sum(-1).max())
            if values > 2**bits:
                raise RazorError(f"'{name}' has {values} values in a group, which {bits} bits cannot hold.")
