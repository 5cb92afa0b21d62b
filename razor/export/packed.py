"""The small model: a folder whose weights really take the bits that were promised.

It is a folder of Transformers (see `razor.export.packed_files` for what lies in it): after `import razor`,
`AutoModelForCausalLM.from_pretrained(folder)` and `pipeline` load it. No pickle, no code. Loading rebuilds the
architecture, swaps in layers that compute on the packed tensors (see `razor.quant.coded`), and gives the logits of
the trained student bit for bit.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.hf_quantizer import METHOD, VERSION
from razor.export.packed_files import CARD, CONFIG, INDEX, WEIGHTS, check_sums, read_card
from razor.quant import Plan, packed_state
from razor.storage import atomic_write, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from razor.quant.coded import Hold

SHARD = 5 * 10**9
"""Bytes of a weights file, at most."""


def save_packed(
    student: PreTrainedModel,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    compute_dtype: torch.dtype,
    folder: Path,
    about: Mapping[str, str | None] | None = None,
    shard: int = SHARD,
) -> None:
    """Pack a trained student into a folder, all or nothing.

    Args:
        student: quantized by the plan.
        plan: formats of its weights.
        tokenizer: saved with it.
        compute_dtype: of its forward pass.
        folder: made or replaced.
        about: what was compressed (model, quant, w_a_kv, base, licence, note), for cards and tables.
        shard: bytes of a weights file at most.

    Raises:
        RazorError: the disk is full.
    """
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        _write_weights(packed_state(student, plan), temporary, shard)
        tokenizer.save_pretrained(temporary)
        student.generation_config.save_pretrained(temporary)
        config = copy.deepcopy(student.config)
        config.architectures, config.dtype = [type(student).__name__], _name(compute_dtype)
        config.quantization_config = {
            "quant_method": METHOD,
            "version": VERSION,
            "compute_dtype": _name(compute_dtype),
            "plan": plan.to_dict(),
        }
        config.save_pretrained(temporary)
        files = sorted(path for path in temporary.iterdir() if path.is_file())
        card = {
            "version": VERSION,
            "about": {key: value for key, value in (about or {}).items() if value is not None},
            "sha256": {path.name: file_digest(path) for path in files},
        }
        (temporary / CARD).write_text(json.dumps(card, indent=1))


def _write_weights(state: dict[str, Tensor], folder: Path, shard: int) -> None:
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save

    split = split_torch_state_dict_into_shards(state, max_shard_size=shard)
    for name, tensors in split.filename_to_tensors.items():
        # not save_file: a full disk must be an OSError, and others may read the file
        content = save({t: state[t] for t in tensors}, metadata={"format": "pt"})
        (folder / name).write_bytes(content)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1))


def reshard(folder: Path, shard: int) -> None:
    """Write the weights of a packed folder again, in files of at most `shard` bytes, and vouch for them."""
    from safetensors.torch import load_file

    state: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        state |= load_file(path)
        path.unlink()
    (folder / INDEX).unlink(missing_ok=True)
    _write_weights(state, folder, shard)
    card = json.loads((folder / CARD).read_text(encoding="utf-8"))
    card["sha256"] = {name: d for name, d in card["sha256"].items() if (folder / name).is_file()}
    for path in (*folder.glob("*.safetensors"), *folder.glob(INDEX)):
        card["sha256"][path.name] = file_digest(path)
    (folder / CARD).write_text(json.dumps(card, indent=1))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def load_packed(folder: Path, hold: Hold = "decoded") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a packed folder on the CPU, ready to generate (keys and values in a `QuantCache`, if the plan says so).

    Args:
        folder: made by `save_packed`, or saved again by Transformers.
        hold: "decoded" keeps 16-bit weights in memory (fast), "packed" decodes at each use (small), "int4"
            multiplies with 4-bit codes (small and fast, equal up to rounding).

    Raises:
        RazorError: no packed folder, made by another version, or damaged.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    read_card(folder)
    check_sums(folder)
    if not any((folder / name).is_file() for name in (WEIGHTS, INDEX)):
        raise RazorError(f"'{folder / WEIGHTS}' cannot be read: it is missing.")
    _check_generation(folder / "generation_config.json")
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
        config.quantization_config["hold"] = hold
        model = AutoModelForCausalLM.from_pretrained(str(folder), config=config, local_files_only=True)
    except RazorError:
        raise
    except Exception as error:  # whatever Transformers makes of a field that is not right
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"'{folder}' is damaged: Transformers cannot load it ({reason}).") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise RazorError(f"'{folder}' lacks a tokenizer that can be read (tokenizer.json).") from error
    return model.eval(), tokenizer


def _check_generation(path: Path) -> None:
    """Transformers goes on without a file that it cannot read."""
    try:
        if path.is_file():
            json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RazorError(f"'{path}' is damaged: it cannot be read.") from error


def check_packed(
    student: PreTrainedModel, folder: Path, input_ids: Tensor, position_ids: Tensor | None = None
) -> None:
    """Reload a packed model and compare its logits with the student's, bit for bit.

    Args:
        student: in evaluation mode, on the CPU.
        folder: made from it.
        input_ids: [B, T] tokens to compare on.
        position_ids: [B, T], restarting with each packed document.

    Raises:
        RazorError: they differ.
    """
    reloaded, _ = load_packed(folder)
    with torch.no_grad():
        expected, found = (
            model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits
            for model in (student, reloaded)
        )
    if not torch.equal(expected, found):
        gap = float((expected.float() - found.float()).abs().max())
        raise RazorError(
            f"The packed model in '{folder}' differs from the student (logits by up to {gap:.3g})."
        )


def packed_bytes(folder: Path) -> int:
    """Bytes of the weights files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


__all__ = ["CARD", "CONFIG", "WEIGHTS", "check_packed", "load_packed", "packed_bytes", "save_packed"]
