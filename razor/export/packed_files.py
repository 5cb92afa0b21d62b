"""The files of a packed folder, and what can be wrong with them.

    config.json         architecture as Transformers has it; in `quantization_config` version, plan, compute dtype
    model.safetensors   packed codes and fp16 scales, 16-bit norms; or shards with model.safetensors.index.json
    razor.json          version, what was compressed, checksums of the other files
    tokenizer files, generation_config.json

docs/packed-format.md describes every byte. What Transformers saved again has no razor.json, and no checksums.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.export.manifest import check_names
from razor.export.shards import INDEX, WEIGHTS
from razor.quant import Plan
from razor.storage import file_digest

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig

CONFIG, CARD = "config.json", "razor.json"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SAFETENSORS = {torch.uint8: "U8", torch.int8: "I8", torch.float16: "F16", torch.bfloat16: "BF16"}
USUAL = (
    CONFIG,
    "generation_config.json",
    "*.safetensors",
    INDEX,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
)
"""What Transformers writes of a language model and its tokenizer."""


@dataclass(frozen=True)
class Card:
    """What a packed folder says of itself.

    Attributes:
        plan: formats of all weights.
        compute_dtype: of the forward pass.
        config: of the architecture, without its quantization.
        about: model, quant, w_a_kv, base, licence, note, of a classifier size, mean, deviation and classes; what is
            known of it.
    """

    plan: Plan
    compute_dtype: torch.dtype
    config: PretrainedConfig
    about: Mapping[str, str] = field(default_factory=dict)


def is_packed(folder: Path) -> bool:
    """Whether this is a packed folder of this or another version, whole or not."""
    if (folder / CARD).is_file():
        return True
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return bool(content["quantization_config"]["quant_method"] == "razor")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_card(folder: Path) -> Card:
    """What a packed folder says of itself; checksums are not looked at.

    Raises:
        RazorError: no packed folder, another version, or damaged.
    """
    from razor.export.hf_quantizer import check_version
    from razor.models import config_from

    own = _json(folder / CARD) if (folder / CARD).is_file() else {}
    if own:
        check_version(own.get("version"), f"'{folder}'")
    content = _json(folder / CONFIG)
    quantization = content.pop("quantization_config", None)
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "razor":
        raise RazorError(f"'{folder}' is no packed model: its {CONFIG} names no quantization by Razor.")
    check_version(quantization.get("version"), f"'{folder}'")
    if "plan" not in quantization:
        raise RazorError(f"'{folder / CONFIG}' is damaged: it lacks the plan.")
    dtype = dtype_of(quantization.get("compute_dtype"), str(folder / CONFIG))
    try:
        config = config_from(folder.name, {k: v for k, v in content.items() if k != "architectures"})
    except RazorError:
        raise
    except Exception as error:  # whatever Transformers makes of a field that is not right
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"'{folder / CONFIG}' is damaged: its architecture is none ({reason}).") from error
    about = own.get("about")
    about = about if isinstance(about, dict) else {}
    known = {str(key): str(value) for key, value in about.items() if value is not None}
    return Card(Plan.from_dict(quantization["plan"]), dtype, config, known)


def files_of(folder: Path) -> list[str]:
    """The files that a packed folder consists of: those in razor.json, or where there is none the usual ones."""
    sums = _json(folder / CARD).get("sha256") if (folder / CARD).is_file() else None
    if isinstance(sums, dict):
        check_names(sums, folder / CARD)
        names = [*sums, CARD]
    else:
        names = [p.relative_to(folder).as_posix() for pattern in USUAL for p in folder.glob(pattern)]
    recipe = ["recipe.yaml"] if (folder / "recipe.yaml").is_file() else []
    return sorted({*names, *recipe})


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as config.json says it."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: Any, where: str) -> torch.dtype:
    """A compute dtype by name.

    Raises:
        RazorError: unknown.
    """
    if name not in DTYPES:
        raise RazorError(f"'{where}' has compute_dtype '{name}'. Choices: {', '.join(DTYPES)}.")
    return DTYPES[name]


def check_sums(folder: Path) -> None:
    """Hold every file against the checksums in razor.json, if there is one.

    Raises:
        RazorError: names the first that is missing or another one.
    """
    if not (folder / CARD).is_file():
        return
    sums = _json(folder / CARD).get("sha256")
    if not isinstance(sums, dict) or not (WEIGHTS in sums or INDEX in sums):
        raise RazorError(f"'{folder / CARD}' is damaged: its sha256 lacks {WEIGHTS}.")
    check_names(sums, folder / CARD)
    for name, digest in sums.items():
        try:
            found = file_digest(folder / name)
        except OSError as error:
            raise RazorError(f"'{folder / name}' cannot be read ({error.strerror}).") from error
        if found != digest:
            raise RazorError(
                f"'{folder / name}' is damaged: its checksum is not the one in {CARD}. (If you changed the folder "
                f"yourself, as save_pretrained into it does, remove '{folder / CARD}'.)"
            )


def check_tensors(model: nn.Module, files: Sequence[Path]) -> None:
    """Hold the tensors in safetensors files, unread, against those of a coded model.

    Raises:
        RazorError: names the first that is missing, unknown, or of another shape or type; or a file that is none.
    """
    from safetensors import SafetensorError, safe_open

    expected = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    part = tensors.get_slice(name)
                    found[name] = (tuple(part.get_shape()), part.get_dtype())
        except (OSError, SafetensorError) as error:
            raise RazorError(f"'{file}' cannot be read ({type(error).__name__}: {error}).") from error
    if wrong := sorted(set(expected) ^ set(found)):
        raise misfit(files[0].parent if files else Path(), wrong[0])
    for name, (shape, dtype) in expected.items():
        stored = name in buffers and dtype in SAFETENSORS
        if found[name][0] != shape or (stored and found[name][1] != SAFETENSORS[dtype]):
            raise misfit(files[0].parent, name)


def misfit(folder: Path, tensor: str) -> RazorError:
    """The error for weights of another model than the one described."""
    return RazorError(f"'{folder}' does not hold the model its {CONFIG} describes: see tensor '{tensor}'.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RazorError(f"'{path.parent}' is no packed model: {path.name} is missing or damaged.") from error
    if not isinstance(content, dict):
        raise RazorError(f"'{path.parent}' is no packed model: {path.name} is damaged.")
    return content
