"""The small model: a folder whose weights really take the bits that were promised.

It is a folder of Transformers (see `razor.export.packed_files` for what lies in it): after `import razor`,
`AutoModelForCausalLM.from_pretrained(folder)` (of an image classifier
`AutoModelForImageClassification`, of one with towers `AutoModelForMultimodalLM`) and `pipeline` load it. No pickle,
no code. Loading rebuilds the architecture, swaps in layers that compute on the packed tensors (see
`razor.quant.coded`), and gives the logits of the trained student bit for bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.hf_quantizer import METHOD, VERSION, RazorConfig
from razor.export.packed_files import CARD, CONFIG, dtype_name, read_card
from razor.export.shards import INDEX, SHARD, WEIGHTS, read_shards, write_shards
from razor.models.task import auto_class, task_of
from razor.quant import Plan, packed_state
from razor.storage import atomic_write, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from razor.quant.coded_weight import Hold


def save_packed(
    student: PreTrainedModel,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase | None,
    compute_dtype: torch.dtype,
    folder: Path,
    about: Mapping[str, str | None] | None = None,
    shard: int = SHARD,
) -> None:
    """Pack a trained student into a folder, all or nothing.

    Args:
        student: quantized by the plan.
        plan: formats of its weights.
        tokenizer: saved with it; None of a model that reads no text.
        compute_dtype: of its forward pass.
        folder: made or replaced.
        about: what was compressed (model, quant, w_a_kv, base, licence, note), for cards and tables; of a
            classifier also size, mean and deviation of its images, and classes.
        shard: bytes of a weights file at most.

    Raises:
        RazorError: the disk is full.
    """
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        write_shards(packed_state(student, plan), temporary, shard)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
            student.generation_config.save_pretrained(temporary)
        config = copy.deepcopy(student.config)
        config.architectures, config.dtype = [type(student).__name__], dtype_name(compute_dtype)
        config.quantization_config = {
            "quant_method": METHOD,
            "version": VERSION,
            "compute_dtype": dtype_name(compute_dtype),
            "plan": plan.to_dict(),
        }
        config.save_pretrained(temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        card = {
            "version": VERSION,
            "about": {key: value for key, value in (about or {}).items() if value is not None},
            "sha256": {path.relative_to(temporary).as_posix(): file_digest(path) for path in files},
        }
        (temporary / CARD).write_text(json.dumps(card, indent=1))


def reshard(folder: Path, shard: int) -> None:
    """Write the weights of a packed folder again, in files of at most `shard` bytes, and vouch for them."""
    state = read_shards(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    write_shards(state, folder, shard)
    if not (folder / CARD).is_file():  # saved again by Transformers
        return
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card["sha256"] = {name: d for name, d in card["sha256"].items() if (folder / name).is_file()}
    for path in (*folder.glob("*.safetensors"), *folder.glob(INDEX)):
        card["sha256"][path.name] = file_digest(path)
    (folder / CARD).write_text(json.dumps(card, indent=1))


def load_packed(
    folder: Path, hold: Hold = "decoded"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Load a packed folder on the CPU, ready to generate (keys and values in a `QuantCache`, if the plan says so).

    Of a model that reads no text, the tokenizer is None.

    Args:
        folder: made by `save_packed`, or saved again by Transformers.
        hold: "decoded" keeps 16-bit weights in memory (fast), "packed" decodes at each use (small), "int4"
            multiplies with 4-bit codes (small and fast, equal up to rounding).

    Raises:
        RazorError: no packed folder, made by another version, or damaged.
    """
    from transformers import AutoConfig

    RazorConfig(hold=hold)  # an unknown way to hold them is told before anything is read
    read_card(folder)
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise RazorError(f"'{folder / WEIGHTS}' cannot be read: it is missing.")
    _check_generation(folder / "generation_config.json")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        config.quantization_config["hold"] = hold
        model = auto_class(config).from_pretrained(str(folder), config=config, local_files_only=True)
    except (RazorError, MemoryError, ImportError):
        raise
    except Exception as error:  # whatever Transformers makes of a field that is not right
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"'{folder}' is damaged: Transformers cannot load it ({reason}).") from error
    return model.eval(), None if task_of(config) == "images" else load_tokenizer(folder)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a packed folder.

    Raises:
        RazorError: there is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # of the tokenizers package, which has none of its own
        raise RazorError(f"'{folder}' lacks a tokenizer that can be read (tokenizer.json).") from error


def _check_generation(path: Path) -> None:
    """Transformers goes on without a file that it cannot read."""
    try:
        if path.is_file():
            json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RazorError(f"'{path}' is damaged: it cannot be read.") from error


def check_packed(student: PreTrainedModel, folder: Path, inputs: Tensor | Mapping[str, Any]) -> None:
    """Reload a packed model and compare its logits with the student's, bit for bit.

    Args:
        student: in evaluation mode, on the CPU.
        folder: made from it.
        inputs: [B, T] tokens to compare on, or all that the models are called with, by name.

    Raises:
        RazorError: they differ.
    """
    reloaded, _ = load_packed(folder)
    given = {"input_ids": inputs, "use_cache": False} if isinstance(inputs, Tensor) else inputs
    with torch.no_grad():
        expected, found = (model(**given).logits for model in (student, reloaded))
    if not torch.equal(expected, found):
        gap = float((expected.float() - found.float()).abs().max())
        raise RazorError(
            f"The packed model in '{folder}' differs from the student (logits by up to {gap:.3g})."
        )


def packed_bytes(folder: Path) -> int:
    """Bytes of the weights files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


__all__ = ["CARD", "CONFIG", "WEIGHTS", "check_packed", "load_packed", "packed_bytes", "save_packed"]
