"""`razor.save` and `razor.load`: a quantized model of any training loop, to and from a packed folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from razor.errors import RazorError
from razor.export.packed import load_packed, save_packed
from razor.export.packed_files import files_of, is_packed
from razor.quant.anatomy import reads_images
from razor.recipe import Quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from razor.quant.coded_weight import Hold

RECIPE = "recipe.yaml"
"""In a packed folder and in that of a run: what was done to the model; a resumed run goes by it."""


def check_place(folder: Path) -> None:
    """Check that a packed folder may be written here: over nothing, or over an older one.

    Raises:
        RazorError: a file, or a folder that holds something else, which would be lost.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder.is_dir() and is_packed(folder)):
        raise RazorError(f"'{folder}' is there already and no packed model: choose another folder.")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if others := files - set(files_of(folder)):
        raise RazorError(
            f"'{folder}' is there already and holds more than a packed model (see '{min(others)}'), which would be "
            "lost: choose another folder."
        )


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: str | Path,
    about: Mapping[str, str | None] | None = None,
) -> None:
    """Pack a model that `razor.quantize` made, with its recipe beside it.

    Args:
        model: in training or not, on any device.
        tokenizer: saved with it; None of an image classifier.
        folder: made or replaced, all or nothing.
        about: what cards and tables call it (model, quant, base, licence, note); by default what model and recipe
            say of themselves.

    Raises:
        RazorError: the model was not quantized by `razor.quantize`, there is no tokenizer, the folder holds
            something else, or the disk is full.
    """
    done = getattr(model, "razor", None)
    if not isinstance(done, Quantized):
        raise RazorError("This model is not quantized: razor.quantize(model, recipe) comes first.")
    if not hasattr(tokenizer, "save_pretrained") and not (tokenizer is None and reads_images(model)):
        raise RazorError(
            f"tokenizer={tokenizer!r}: give the model's tokenizer, a packed folder holds it too."
        )
    check_place(Path(folder))
    if about is None:
        name = Path(str(getattr(model.config, "name_or_path", "") or model.config.model_type)).name
        about = {"model": name, "quant": done.recipe.name}
    save_packed(
        model, done.plan, tokenizer, done.compute_dtype, Path(folder), {**about, "w_a_kv": done.w_a_kv}
    )
    done.recipe.save(Path(folder) / RECIPE)


def load(
    folder: str | Path, hold: Hold = "decoded"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """A packed model on the CPU, ready to generate, and its tokenizer; None of an image classifier.

    Args:
        folder: made by `save`, or by a run.
        hold: what is kept in memory, see `razor.quant.coded_weight.Hold`.

    Raises:
        RazorError: no packed folder, made by a newer version, or damaged.
    """
    return load_packed(Path(folder), hold)
