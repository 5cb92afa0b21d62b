"""Tiny models by the options of conf/, and a batch of packed documents for them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.cli import build, composed, model_source
from razor.distill import IGNORE, Batch
from razor.models import make_student
from razor.quant import Format


def make(*overrides: str, compute: torch.dtype = torch.float32, kv: Format | None = None) -> Any:
    """(student, teacher, plan); `kv` takes the place of the recipe's KV format."""
    words = list(overrides)
    if not any(word.startswith("model=") for word in words):
        words.append("model=tiny_llama")
    config = composed("size", words)
    source, recipe = model_source(config), build(config.quant)
    if kv is not None:
        recipe.kv_cache = kv
    plan = recipe.plan(source.skeleton())
    teacher = source.load(compute)
    return make_student(teacher, plan, compute).eval(), teacher, plan


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., Any]:
    """Make (student, teacher, plan) of a tiny model in evaluation mode."""
    return make


def packed_batch(
    lengths: tuple[tuple[int, ...], ...] = ((9, 5), (7,)), columns: int = 16, seed: int = 0
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), columns)
    ids = torch.randint(0, 256, shape, generator=generator)
    positions, owners = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    index = 0
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            owners[row, start : start + size] = index
            positions[row, start : start + size] = torch.arange(size)
            start, index = start + size, index + 1
    return Batch(ids, torch.full(shape, IGNORE), positions, owners)


@pytest.fixture(scope="session")
def make_packed() -> Callable[..., Batch]:
    """Make a batch of packed documents by their lengths."""
    return packed_batch


@pytest.fixture
def whole_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention in one piece, as checkpointed layers compute it; in several it differs by roundings."""
    monkeypatch.setattr(sys.modules["razor.models.record"], "packed_attention", lambda *_: nullcontext())


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with heads of 64, as a file."""
    from razor.export.gguf import GGUF
    from razor.quant import Integer
    from tests.export.gguf_models import WIDE, packed_in

    folder = tmp_path_factory.mktemp("gguf")
    GGUF(runtime=False).write(packed_in(folder, WIDE, Integer(4, 32)), folder)
    (found,) = folder.glob("*.gguf")
    return found
