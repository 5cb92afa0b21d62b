"""Packed folders of small models for tests of exporters, and models that were moved away from where they began."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import Exporter, export
from razor.export.hf_folder import Skeleton
from razor.export.packed import save_packed
from razor.export.shards import read_shards, write_shards
from razor.models import RandomModel, make_student
from razor.quant import Format, Integer, Placement, Plan

QWEN2 = {
    "model_type": "qwen2",  # has biases
    "vocab_size": 272,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.08,
    "tie_word_embeddings": False,
}


def packed(
    folder: Path, quant: str = "w4", model: str = "tiny_llama", *overrides: str, source: Any = None
) -> Compressed:
    """A tiny model under an option of conf/quant, its latents moved as by training, packed and opened again."""
    config = cli.composed("size", [f"model={model}", f"quant={quant}", *overrides])
    source = source or cli.model_source(config)
    return packed_by(folder, source, cli.build(config.quant).plan(source.skeleton()))


def packed_by(
    folder: Path, source: Any, plan: Plan, compute_dtype: torch.dtype = torch.bfloat16
) -> Compressed:
    """The same by a plan."""
    student = make_student(source.load(torch.bfloat16), plan, compute_dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_packed(student, plan, source.tokenizer(), compute_dtype, folder / "packed")
    return Compressed.open(folder / "packed")


def qwen2() -> RandomModel:
    """A model with biases, on 128 and 256 inputs."""
    return RandomModel("tiny_qwen2", QWEN2)


def exported(compressed: Compressed, exporter: Exporter) -> Path:
    """Its folder, beside the packed one."""
    return export(compressed, {exporter.name: exporter}, compressed.folder.parent)[exporter.name]


def changed_is_noticed(exporter: Exporter, home: Path, part: str) -> None:
    """That a code or scale written otherwise, in one tensor of a layer, ends the proof with the layer's name."""
    compressed, name = packed(home, "w4", "tiny_llama"), "model.layers.2.mlp.gate_proj"
    folder = exported(compressed, exporter)
    state = read_shards(folder)
    state[f"{name}.{part}"].view(-1)[0] += 1
    write_shards(state, folder)
    with pytest.raises(RazorError, match=name):
        exporter.verify(compressed, folder)


def plan_of(source: Any, linear: Format, ends: Format | None = None, **exceptions: Format) -> Plan:
    """A plan without A and KV: one format for decoder linears, but others by the last part of their name."""
    skeleton = Skeleton.of(source.config())
    inner = {name: exceptions.get(name.rpartition(".")[2], linear) for name in skeleton.linear}
    outer = dict.fromkeys(sorted(skeleton.ends), ends or Integer(8, 32))
    return Plan({name: Placement(format) for name, format in (inner | outer).items()})
