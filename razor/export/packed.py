"""The small model: a folder whose weights really take the bits that were promised.

    model.safetensors   packed codes and fp16 scales, 16-bit norms; tensor names are those of the coded model
    razor.json          format version, plan, architecture, compute dtype, checksums
    tokenizer files     as Transformers writes them
    generation_config.json

No pickle, no code. Loading rebuilds the architecture from `razor.json`, swaps in layers that compute on the
packed tensors (see `razor.quant.coded`), and gives the logits of the trained student bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.models import config_from, quantize_kv
from razor.quant import Plan, packed_state, swap_in_coded
from razor.storage import atomic_write, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VERSION = 1
WEIGHTS, CARD = "model.safetensors", "razor.json"
DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.bfloat16, torch.float16, torch.float32)
}


def save_packed(
    student: PreTrainedModel,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    compute_dtype: torch.dtype,
    folder: Path,
) -> None:
    """Pack a trained student into a folder, all or nothing.

    Raises:
        RazorError: the disk is full.
    """
    from safetensors.torch import save

    with atomic_write(folder) as temporary:
        temporary.mkdir()
        # not save_file: a full disk must be an OSError, and others may read the file
        weights = save(packed_state(student, plan), metadata={"format": f"razor-{VERSION}"})
        (temporary / WEIGHTS).write_bytes(weights)
        tokenizer.save_pretrained(temporary)
        student.generation_config.save_pretrained(temporary)
        architecture = student.config.to_diff_dict() | {"model_type": student.config.model_type}
        card = {
            "version": VERSION,
            "compute_dtype": str(compute_dtype).removeprefix("torch."),
            "architecture": {k: v for k, v in architecture.items() if not k.startswith("_")},
            "plan": plan.to_dict(),
            "sha256": {WEIGHTS: file_digest(temporary / WEIGHTS)},
        }
        (temporary / CARD).write_text(json.dumps(card, indent=1))


def load_packed(folder: Path, keep_decoded: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a packed folder on the CPU, ready to generate (keys and values in a `QuantCache`, if the plan says so).

    Args:
        folder: made by `save_packed`.
        keep_decoded: keep decoded 16-bit weights in memory (fast); False decodes at each use (small).

    Raises:
        RazorError: no packed folder, made by a newer version, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, GenerationConfig

    card = _read_card(folder)
    plan, compute_dtype = Plan.from_dict(card["plan"]), DTYPES[card["compute_dtype"]]
    try:
        if file_digest(folder / WEIGHTS) != card["sha256"][WEIGHTS]:
            raise RazorError(f"'{folder / WEIGHTS}' is damaged: its checksum is not the one in {CARD}.")
        state = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise RazorError(f"'{folder / WEIGHTS}' cannot be read ({type(error).__name__}: {error}).") from error
    model = _empty(_config_of(folder, card), compute_dtype)
    swap_in_coded(model, plan, compute_dtype, keep_decoded)
    _fill(model, state, compute_dtype, folder)
    if plan.kv_cache is not None:
        quantize_kv(model, plan.kv_cache)
    if (folder / "generation_config.json").is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise RazorError(
                f"'{folder / 'generation_config.json'}' is damaged: it cannot be read."
            ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise RazorError(f"'{folder}' lacks a tokenizer that can be read (tokenizer.json).") from error
    return model.eval().requires_grad_(False), tokenizer


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
    """Bytes of the weights file."""
    return (folder / WEIGHTS).stat().st_size


def _read_card(folder: Path) -> dict[str, Any]:
    try:
        card = json.loads((folder / CARD).read_text())
        if card["version"] > VERSION:
            raise RazorError(
                f"'{folder}' was packed in format {card['version']}; this Razor reads up to {VERSION}."
            )
        if missing := {"plan", "architecture", "compute_dtype", "sha256"} - set(card):
            raise RazorError(f"'{folder / CARD}' is damaged: it lacks '{min(missing)}'.")
        if not isinstance(card["sha256"], dict) or WEIGHTS not in card["sha256"]:
            raise RazorError(f"'{folder / CARD}' is damaged: its sha256 lacks {WEIGHTS}.")
        if card["compute_dtype"] not in DTYPES:
            raise RazorError(
                f"'{folder / CARD}' has compute_dtype '{card['compute_dtype']}'. Choices: {', '.join(DTYPES)}."
            )
        return dict(card)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, RazorError):
            raise
        raise RazorError(f"'{folder}' is no packed model: {CARD} is missing or damaged.") from error


def _config_of(folder: Path, card: dict[str, Any]) -> Any:
    try:
        return config_from(folder.name, card["architecture"])
    except RazorError:
        raise
    except Exception as error:  # whatever Transformers makes of a field that is not right
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"'{folder / CARD}' is damaged: its architecture is none ({reason}).") from error


def _empty(config: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture with its buffers (rotary frequencies, scales) but without initialised weights."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model


def _fill(model: PreTrainedModel, state: dict[str, Any], dtype: torch.dtype, folder: Path) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    unknown = sorted(set(state) - set(expected))
    wrong = sorted(n for n in set(state) & set(expected) if state[n].shape != expected[n])
    if unknown or wrong:
        raise _misfit(folder, (unknown + wrong)[0])
    model.load_state_dict(state, assign=True, strict=False)
    shared = {name for name in expected if name not in state}
    filled = {id(buffer) for name, buffer in model.named_buffers(remove_duplicate=False) if name in state}
    left = [n for n, b in model.named_buffers(remove_duplicate=False) if n in shared and id(b) not in filled]
    left += [n for n, _ in model.named_parameters() if n not in state]
    if left:
        raise _misfit(folder, left[0])
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


def _misfit(folder: Path, tensor: str) -> RazorError:
    return RazorError(f"'{folder}' does not hold the model its {CARD} describes: see tensor '{tensor}'.")
