"""The head of a model as a small GGUF of fp32 tensors: does llama.cpp compute the same thing at all?

Whether names, order of rows, rotary embedding, norms and every number of the metadata mean to llama.cpp what they
mean to Transformers shows without quantization: in fp32 the two agree to 1e-4. But a large model in fp32 is a
large file. So a twin is made of the first layers, as many as it takes to have one of each kind, and of the first
rows of embedding and head. It has no vocabulary; it is given tokens. The codes of all layers are compared one by
one anyway (`reading.py`).
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from razor.export.gguf.architectures import Architecture
from razor.export.gguf.reference import TOKENS, reference_logits
from razor.export.gguf.writing import Entry, write_bare
from razor.models.llama_process import LlamaProcess
from razor.quant import Grouped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from razor.export.compressed import Compressed, Weight

ROWS = 256
"""Tokens of a twin."""


def small_config(architecture: Architecture) -> Any:
    """The config of the twin: the first layers, the first tokens."""
    config = copy.deepcopy(architecture.config)
    layers = min(architecture.kinds_of_layers, config.num_hidden_layers)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    config.num_hidden_layers, config.vocab_size = layers, min(ROWS, config.vocab_size)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    return config


def compare_twin(compressed: Compressed, architecture: Architecture, folder: Path) -> tuple[Tensor, Tensor]:
    """Logits [tokens, rows] of the model's head by Transformers and by llama.cpp, both in fp32.

    Args:
        compressed: the model.
        architecture: of it.
        folder: where the file lies while it is read.
    """
    small = type(architecture)(small_config(architecture))
    parameters = _first(compressed, small.config)
    entries = [
        Entry(
            small.tensor(name),
            name,
            tuple(value.shape),
            "float32",
            values=lambda name=name, value=value: value + _added(small, name),  # type: ignore[misc]
            order=small.order(name),
        )
        for name, value in parameters.items()
    ]
    entries += [
        Entry(name, "", tuple(value.shape), "float32", values=lambda value=value: value)  # type: ignore[misc]
        for name, value in small.added_tensors().items()
    ]
    path = folder / "twin.gguf"
    tokens = [(7 * index) % small.config.vocab_size for index in range(TOKENS)]
    try:
        write_bare(path, small, entries)
        with LlamaProcess(path, 512, kv="f32", flash=False) as llama:
            found = torch.from_numpy(llama.logits(tokens).copy())
    finally:
        path.unlink(missing_ok=True)
    return reference_logits(_model(small.config, parameters), tokens), found


def _added(architecture: Architecture, name: str) -> float:
    return architecture.added if architecture.tensor(name).endswith("norm.weight") else 0.0


def _first(compressed: Compressed, config: Any) -> dict[str, Tensor]:
    """Parameters in fp32 of the first layers, by their names; the first rows of embedding and head."""
    kept = {}
    for weight in compressed.weights():
        if _is_in(weight.name, config):
            kept[f"{weight.name}.weight"] = (
                _rows(weight, config.vocab_size) if _outer(weight) else weight.decoded()
            )
    for name, tensor in compressed.others():
        if _is_in(name, config):
            kept[name] = tensor.detach().float()
    return kept


def _is_in(name: str, config: Any) -> bool:
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return layer is None or int(layer[1]) < config.num_hidden_layers


def _outer(weight: Weight) -> bool:
    return not weight.name.startswith("model.layers.")


def _rows(weight: Weight, count: int) -> Tensor:
    format = weight.format
    if isinstance(format, Grouped) and format.group != "tensor":  # not the whole embedding in fp32
        return format.decode(weight.codes.rows(torch.arange(count)))
    return weight.decoded()[:count]


def _model(config: Any, parameters: dict[str, Tensor]) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    model.tie_weights()
    own = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in parameters.items():
            own[name].copy_(value)
    return model.eval()
