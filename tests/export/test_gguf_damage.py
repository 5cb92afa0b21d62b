"""Damaged GGUF files: Razor's door refuses every one, and llama.cpp never takes this process with it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from razor.errors import RazorError
from razor.export.gguf import GGUF
from razor.export.manifest import check_files
from razor.models.llama_process import LlamaProcess
from razor.quant import Integer
from tests.export.gguf_models import ARCHITECTURES, packed_in
from tests.export.hf_models import exported


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("gguf")
    return exported(packed_in(home, ARCHITECTURES["llama"], Integer(4, 32)), GGUF(runtime=False))


def damaged(content: bytes, chance: random.Random, head: int) -> bytes:
    """Cut off somewhere, or with one to eight bits turned, half of the time within the first `head` bytes."""
    if chance.random() < 0.3:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.randint(1, 8)):
        end = head if chance.random() < 0.5 else len(changed)
        changed[chance.randrange(end)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def test_the_door_refuses_two_hundred_damaged_files(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "gguf"
    shutil.copytree(folder, copy)
    (path,) = copy.glob("*.gguf")
    content, chance = path.read_bytes(), random.Random(0)
    check_files(copy)
    for _ in range(200):
        broken = damaged(content, chance, 4096)
        if broken == content:  # two bits turned back
            continue
        path.write_bytes(broken)
        with pytest.raises(RazorError, match=r"\.gguf' is damaged"):
            check_files(copy)
    path.write_bytes(content)
    check_files(copy)


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] * (seed > 0)) for seed in range(9)]
)
def test_llama_cpp_survives_or_dies_alone(seed: int, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    (path,) = folder.glob("*.gguf")
    broken, chance = tmp_path / "broken.gguf", random.Random(seed)
    refused = 0
    for _ in range(6):
        broken.write_bytes(damaged(path.read_bytes(), chance, 2048))
        try:
            with LlamaProcess(broken) as llama:
                llama.logits(list(range(20)))
        except RazorError as error:
            assert "llama.cpp" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused
