"""`razor.save` and `razor.load`: a quantized model of any training loop, to and from a packed folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from razor.errors import RazorError
from razor.export.packed import CARD, load_packed, save_packed
from razor.recipe import Quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

RECIPE = "recipe.yaml"
"""In a packed folder and in that of a run: what was done to the model; a resumed run goes by it."""


def check_place(folder: Path) -> None:
    """Check that a packed folder may be written here: over nothing, or over an older one.

    Raises:
        RazorError: a file, or a folder that holds something else and would be lost.
    """
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / CARD).is_file())):
        raise RazorError(f"'{folder}' is there already and no packed model: choose another folder.")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Pack a model that `razor.quantize` made, with its recipe beside it.

    Args:
        model: in training or not, on any device.
        tokenizer: saved with it.
        folder: made or replaced, all or nothing.

    Raises:
        RazorError: the model was not quantized by `razor.quantize`, there is no tokenizer, the folder holds
            something else, or the disk is full.
    """
    done = getattr(model, "razor", None)
    if not isinstance(done, Quantized):
        raise RazorError("This model is not quantized: razor.quantize(model, recipe) comes first.")
    if not hasattr(tokenizer, "save_pretrained"):
        raise RazorError(
            f"tokenizer={tokenizer!r}: give the model's tokenizer, a packed folder holds it too."
        )
    check_place(Path(folder))
    save_packed(model, done.plan, tokenizer, done.compute_dtype, Path(folder))
    done.recipe.save(Path(folder) / RECIPE)


def load(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A packed model on the CPU, ready to generate, and its tokenizer.

    Raises:
        RazorError: no packed folder, made by a newer version, or damaged.
    """
    return load_packed(Path(folder))
