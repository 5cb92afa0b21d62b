"""Tensors as the safetensors files of a folder: one, or several and an index, as Transformers names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = 5 * 10**9
"""Bytes of a file, at most."""


def write_shards(state: Mapping[str, Tensor], folder: Path, shard: int = SHARD) -> None:
    """Write tensors by name into a folder, in files of at most `shard` bytes where tensors allow it."""
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save

    split = split_torch_state_dict_into_shards(dict(state), max_shard_size=shard)
    for file, names in split.filename_to_tensors.items():
        # not save_file: a full disk must be an OSError, and others may read the file
        content = save({name: state[name].contiguous() for name in names}, metadata={"format": "pt"})
        (folder / file).write_bytes(content)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def read_shards(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, by name."""
    from safetensors.torch import load_file

    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
