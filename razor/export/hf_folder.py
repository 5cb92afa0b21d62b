"""What every exported folder of Transformers consists of.

Exporters differ in how they write the matrices of the decoder. The rest is the same: norms and biases, embedding
and head, config, generation config, tokenizer, shards, and what the card has to say about all that.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.errors import RazorError
from razor.export.packed_files import dtype_name
from razor.export.shards import write_shards
from razor.export.words import write_words
from razor.models.task import auto_class
from razor.quant.anatomy import entrance_of, head_of, reads_images

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from razor.export.compressed import Compressed


@dataclass(frozen=True)
class Skeleton:
    """A model without weights.

    Attributes:
        model: on the meta device.
        ends: names of embedding and output head.
        linear: the other linear layers, by name.
    """

    model: PreTrainedModel
    ends: set[str]
    linear: Mapping[str, nn.Linear]

    @classmethod
    def of(cls, config: PretrainedConfig) -> Skeleton:
        """The skeleton of an architecture."""
        with torch.device("meta"):
            model = auto_class(config).from_config(copy.deepcopy(config))
        first = entrance_of(model) if reads_images(model) else [model.get_input_embeddings()]
        outer = (*first, head_of(model))
        modules = dict(model.named_modules())
        ends = {name for name, module in modules.items() if any(module is end for end in outer)}
        linear = {n: m for n, m in modules.items() if isinstance(m, nn.Linear) and n not in ends}
        return cls(model, ends, linear)

    def parameter(self, name: str) -> str:
        """Full name of the parameter that a plan calls `name`."""
        known = dict(self.model.named_parameters(remove_duplicate=False))
        return f"{name}.weight" if f"{name}.weight" in known else name


def sixteen_bit(
    compressed: Compressed, skeleton: Skeleton, dtype: torch.dtype, names: set[str] | None = None
) -> dict[str, Tensor]:
    """Tensors of a plain model: decoded weights, norms, biases and buffers, each rounded once to a dtype.

    Args:
        compressed: the model.
        skeleton: of it.
        dtype: of floating-point tensors.
        names: of the planned weights that are wanted; None: all. What no plan covers is always there.

    Returns:
        By parameter name; a tied weight under the name by which Transformers saves it.

    Raises:
        RazorError: a number is too large for the dtype.
    """
    tied = set(skeleton.model.all_tied_weights_keys)
    state = {name: _rounded(name, tensor, skeleton, dtype) for name, tensor in compressed.others()}
    for weight in compressed.weights():
        if names is None or set(weight.names) & names:
            called = [skeleton.parameter(name) for name in weight.names]
            name = next((name for name in called if name not in tied), called[0])
            state[name] = weight.decoded().to(dtype).contiguous()
    kept = compressed.model.state_dict()  # running means and the like
    wanted = skeleton.model.state_dict()
    left = [name for name in kept if name in wanted and name not in state]
    state |= {name: _rounded(name, kept[name], skeleton, dtype) for name in left}
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise RazorError(
                f"'{name}' has numbers too large for {dtype_name(dtype)}: export=[packed,dense] hold it."
            )
    return state


def _rounded(name: str, tensor: Tensor, skeleton: Skeleton, dtype: torch.dtype) -> Tensor:
    """A tensor in the dtype in which Transformers will hold it: counters stay whole, a few are always fp32."""
    always: Any = getattr(skeleton.model, "_keep_in_fp32_modules_strict", None) or ()
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if any(f".{part}." in f".{name}." for part in always) else dtype)


def write_folder(
    compressed: Compressed,
    folder: Path,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    quantization: Mapping[str, Any],
) -> None:
    """Write a folder of Transformers: shards of at most 5 GB with their index, configs, tokenizer.

    Args:
        compressed: the model.
        folder: empty.
        state: its tensors.
        dtype: that config.json names, in which runtimes compute.
        quantization: `quantization_config` of config.json.
    """
    write_shards(state, folder)
    config = copy.deepcopy(compressed.config)
    config.architectures, config.dtype = [type(compressed.model).__name__], dtype_name(dtype)
    config.quantization_config = dict(quantization)
    config.save_pretrained(folder)
    write_words(compressed, folder)


def check_state(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: Path) -> None:
    """Compare tensors that were read with those that were meant, bit for bit.

    Raises:
        RazorError: names the first that is missing or another one.
    """
    for name, tensor in expected.items():
        if name not in found or found[name].dtype != tensor.dtype or not torch.equal(found[name], tensor):
            raise RazorError(f"'{where}' was not written as it was meant: see tensor '{name}'.")


def not_in_it(compressed: Compressed, activations: bool = True) -> list[str]:
    """A sentence for the card on quantized activations and KV cache that the folder does not say; none without."""
    places = compressed.plan.modules.values() if activations else ()
    labels = {place.activations.label for place in places if place.activations is not None}
    left = [f"{'/'.join(sorted(labels))}-bit activations"] if labels else []
    if compressed.plan.kv_cache is not None:
        left.append(f"the {compressed.plan.kv_cache.label}-bit KV cache")
    if not left:
        return []
    return [
        f"{' and '.join(left)}, with which it was trained and scored, are not part of this format: a runtime "
        "computes them in 16 bits"
    ]


def integer_costs(compressed: Compressed, folder: Path, dtype: torch.dtype) -> list[str]:
    """Sentences on what a folder of integers takes: its own ratio, unused bits, the 16-bit ends.

    Args:
        compressed: what was exported.
        folder: the export.
        dtype: that it names.
    """
    size = compressed.size
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    total = size.total.parameters
    ends = 100 * 2 * size.embedding.parameters / stored
    lines = [
        f"{stored / 1e6:.1f} MB, {8 * stored / total:.2f} bits per weight, "
        f"ratio {2 * total / stored:.2f} to 16 bits",
        f"embedding and output head stay 16-bit ({dtype_name(dtype)}, rounded once from the decoded values): "
        f"{ends:.0f} % of the file",
    ]
    if size.code_bits not in (4.0, 8.0):
        lines.append(
            f"codes of {size.code_bits:.3g} bits on average are stored in four or eight: the values are the same, "
            "the bytes are not saved"
        )
    return [
        *lines,
        f"runtimes should compute in {dtype_name(dtype)}, as config.json says: another type would round the scales",
    ]
