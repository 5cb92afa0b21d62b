"""`razor.save` and `razor.load`: a quantized model of any training loop, to and from a packed folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from razor.errors import RazorError
from razor.export.packed import load_packed, save_packed
from razor.recipe import Quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECIPE = "recipe.yaml"
"""In a packed folder and in that of a run: what was done to the model; a resumed run goes by it."""


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Pack a model that `razor.quantize` made, with its recipe beside it.

    Args:
        model: in training or not, on any device.
        tokenizer: saved with it.
        folder: made or replaced, all or nothing.

    Raises:
        RazorError: the model was not quantized by `razor.quantize`, or the disk is full.
    """
    done = getattr(model, "razor", None)
    if not isinstance(done, Quantized):
        raise RazorError("This model is not quantized: razor.quantize(model, recipe) comes first.")
    save_packed(model, done.plan, tokenizer, done.compute_dtype, Path(folder))
    done.recipe.save(Path(folder) / RECIPE)


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A packed model on the CPU, ready to generate, and its tokenizer.

    Raises:
        RazorError: no packed folder, made by a newer version, or damaged.
    """
    return load_packed(Path(folder))
