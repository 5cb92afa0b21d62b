"""Two hundred damaged exports: each is an error in one line, none loads as another model."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.compressed_tensors import CompressedTensors
from razor.export.dense import Dense
from razor.export.exporter import Exporter, export
from razor.export.gptq import GPTQ
from razor.export.manifest import check_files
from razor.export.packed import save_packed
from razor.export.packed_exporter import Packed
from razor.export.packed_files import check_sums

DAMAGES = 200


def damage(path: Path, draw: random.Random) -> str:
    """Cut a file, or flip a bit of it."""
    content = bytearray(path.read_bytes())
    if draw.random() < 0.4:
        kept = draw.randrange(len(content))
        path.write_bytes(content[:kept])
        return f"{path.name} cut to {kept} of {len(content)}"
    place, bit = draw.randrange(len(content)), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} of {path.name}"


def test_damaged_exports_are_refused(tiny_student: Callable[..., Any], tmp_path: Path) -> None:
    student, plan, tokenizer, _ = tiny_student("mixed_2p79", "tiny_llama")
    save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    whole = export(
        Compressed.open(tmp_path / "packed"), {"packed": Packed(shard=60_000)}, tmp_path / "exports"
    )["packed"]
    draw = random.Random(0)
    files = sorted(whole.iterdir())
    sizes = [max(1, path.stat().st_size) for path in files]
    for number in range(DAMAGES):
        folder = tmp_path / "damaged"
        shutil.copytree(whole, folder)
        # every second time any file, else by size: weights
        (victim,) = draw.choices(files, None if number % 2 else sizes)
        what = damage(folder / victim.name, draw)
        with pytest.raises(RazorError) as error:
            check_files(folder)
            pytest.fail(f"{what}: check_files is content")
        assert "\n" not in str(error.value), what
        if victim.suffix == ".safetensors":
            with pytest.raises(RazorError):
                AutoModelForCausalLM.from_pretrained(folder)
                pytest.fail(f"{what}: it loads")
        elif victim.name not in ("README.md", "manifest.json", "razor.json", "recipe.yaml"):
            with pytest.raises(RazorError):
                check_sums(folder)
                pytest.fail(f"{what}: razor.json is content")
        shutil.rmtree(folder)


@pytest.mark.parametrize("exporter", [Dense(), GPTQ(), CompressedTensors()], ids=lambda e: e.name)
def test_damaged_folders_of_other_formats_are_refused(
    exporter: Exporter, tiny_student: Callable[..., Any], tmp_path: Path
) -> None:
    student, plan, tokenizer, _ = tiny_student("w4", "tiny_llama")
    save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / "packed")
    made = export(Compressed.open(tmp_path / "packed"), {exporter.name: exporter}, tmp_path / "exports")
    draw = random.Random(1)
    for _ in range(DAMAGES // 5):
        folder = tmp_path / "damaged"
        shutil.copytree(made[exporter.name], folder)
        what = damage(draw.choice(sorted(folder.iterdir())), draw)
        with pytest.raises(RazorError) as error:
            check_files(folder)
            pytest.fail(f"{what}: check_files is content")
        assert "\n" not in str(error.value), what
        shutil.rmtree(folder)
