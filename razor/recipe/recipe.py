"""The whole of a compression as one description: quantization, distillation, compute dtype.

The same few keys whether they come from YAML, JSON, a dict or Python objects, and nothing else is needed to
repeat what a run did to a model:

    name: mixed_2p79
    compute_dtype: bfloat16
    quant:
      weights: {kind: RowMix, high: {...}, low: {...}, fraction: 0.5}
      embedding: {kind: Integer, width: 4, group: 64}
      activations: {kind: Integer, width: 8, group: 64}
      kv_cache: {kind: Integer, width: 8, group: 64}
    distill:
      losses: {task: {kind: CrossEntropy}, eakld: {kind: EAKLD, k: 16}}
      weights: {task: 0.1, eakld: 2.0}

Formats and losses are named by their class, with its arguments (see `razor.spec`). docs/recipe.md tells every
key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from razor.distill import Objective
from razor.errors import RazorError
from razor.quant import Plan
from razor.recipe.files import read_mapping, write_mapping
from razor.recipe.plan_file import PlanFile
from razor.recipe.quant_recipe import QuantRecipe
from razor.spec import construct, read

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class Recipe:
    """Quantization and distillation of a model.

    Attributes:
        name: for tables and file names.
        quant: formats by kind of module or a finished plan; plain data is built; None: no quantization said.
        distill: named, weighted losses; plain data is built; None: no distillation said.
        compute_dtype: of activations and quantized weights in the forward pass: bfloat16, float16, float32.

    Raises:
        RazorError: an unknown key, a wrong type or value; the text names path, value and choices.
    """

    name: str
    quant: QuantRecipe | PlanFile | None = None
    distill: Objective | None = None
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        if isinstance(self.quant, Mapping):
            kind: type[QuantRecipe] | type[PlanFile] = PlanFile if "plan" in self.quant else QuantRecipe
            self.quant = construct(kind, self.quant, "quant", name=self.name)
        elif isinstance(self.quant, Plan):
            self.quant = PlanFile(self.name, self.quant)
        if isinstance(self.distill, Mapping):
            self.distill = Objective.from_spec(self.distill, "distill")
        for key, kinds in (("quant", (QuantRecipe, PlanFile)), ("distill", (Objective,))):
            if (value := getattr(self, key)) is not None and not isinstance(value, kinds):
                raise RazorError(
                    f"{key} must be a mapping (docs/recipe.md lists its keys), not {type(value).__name__}."
                )
        if not re.fullmatch(r"[\w.+-]+", read(str, self.name, "name")):
            raise RazorError(f"name='{self.name}' names files: letters, digits and . _ + - alone.")
        read(Literal["bfloat16", "float16", "float32"], self.compute_dtype, "compute_dtype")
        if self.quant is None and self.distill is None:
            raise RazorError(f"The recipe '{self.name}' says neither quant nor distill.")

    @classmethod
    def load(cls, source: Recipe | Mapping[str, Any] | str | Path) -> Recipe:
        """A recipe from a file (.yaml, .json), a mapping, or a recipe itself.

        Raises:
            RazorError: as the class; the text of a file's error begins with its path.
        """
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return construct(_Plain, source, "").recipe()
        if not isinstance(source, (str, Path)):
            raise RazorError(f"A recipe is a file, a mapping or a Recipe, not {type(source).__name__}.")
        try:
            return cls.load(read_mapping(Path(source)))
        except RazorError as error:
            text = str(error)
            raise error if str(source) in text else RazorError(f"{source}: {text}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data, from which `load` builds the same recipe."""
        return {
            "name": self.name,
            "compute_dtype": self.compute_dtype,
            "quant": self.quant and self.quant.to_dict(),
            "distill": self.distill and self.distill.spec(),
        }

    def save(self, path: str | Path) -> None:
        """Write it as YAML or JSON, by the file's ending.

        Raises:
            RazorError: another ending, or the disk is full.
        """
        write_mapping(self.to_dict(), Path(path))

    @property
    def dtype(self) -> torch.dtype:
        """`compute_dtype` as torch's."""
        return DTYPES[self.compute_dtype]


@dataclass
class _Plain:
    """The keys of a recipe as data."""

    name: str
    quant: Any = None
    distill: Any = None
    compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    def recipe(self) -> Recipe:
        return Recipe(self.name, self.quant, self.distill, self.compute_dtype)


def quantization_of(recipe: str | None, name: str = "recipe") -> QuantRecipe | PlanFile:
    """The quantization part of a recipe file (conf/quant/recipe.yaml).

    Raises:
        RazorError: no file was given, or the recipe has no such part.
    """
    found = Recipe.load(_given(recipe, "quant")).quant
    if found is None:
        raise RazorError(f"quant=recipe, but '{recipe}' has no quant section.")
    return found


def objective_of(recipe: str | None) -> Objective:
    """The distillation part of a recipe file (conf/distill/recipe.yaml).

    Raises:
        RazorError: no file was given, or the recipe has no such part.
    """
    found = Recipe.load(_given(recipe, "distill")).distill
    if found is None:
        raise RazorError(f"distill=recipe, but '{recipe}' has no distill section.")
    return found


def _given(recipe: str | None, group: str) -> str:
    if recipe is None:
        raise RazorError(f"{group}=recipe takes it from a file: say which by recipe=FILE.")
    return recipe
