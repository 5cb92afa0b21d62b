"""`razor quantize`: plain rounding into a packed folder that reads back as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.export.folder import load


@pytest.mark.parametrize("quant", ["w4", "w2", "mixed_2p79 quant.weights.rows=error"])
def test_what_is_packed_is_the_rounded_model(razor: Callable[..., Any], tmp_path: Path, quant: str) -> None:
    words = ["model=tiny_llama", *f"quant={quant}".split()]
    done = razor("quantize", *words, f"out={tmp_path / 'small'}")
    assert done.code == 0 and "read back with the same logits" in done.out, done.err
    packed, tokenizer = load(tmp_path / "small")
    config = cli.composed("size", words)
    plain = cli.model_source(config).load(torch.float32)
    ids = tokenizer("some text", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        gap = (packed(ids).logits.float() - plain(ids).logits).abs().mean()
    assert 0.001 < gap < plain(ids).logits.abs().mean() * 2  # rounded, and still that model
    size = json.loads(razor("size", *words, "json=true").out)
    stored = sum(t.nbytes for name, t in packed.state_dict().items() if not name.startswith("lm_head.bias"))
    assert stored == pytest.approx(size["bytes_disk"], rel=0.01)


def test_it_can_be_talked_to(razor: Callable[..., Any], tmp_path: Path) -> None:
    razor("quantize", "model=tiny_llama", "quant=w4", f"out={tmp_path / 'small'}")
    done = razor("chat", f"run={tmp_path / 'small'}", "prompt=Hello", "max_new_tokens=3")
    assert done.code == 0, done.err


def test_what_is_wrong_is_said_before_anything_is_written(razor: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "small"
    assert (
        "Group 48 does not divide the 64"
        in razor("quantize", "model=tiny_llama", "model.group=48", f"out={out}").problem
    )
    assert "out has no default" in razor("quantize", "model=tiny_llama").problem
    assert not out.exists()
    out.mkdir()
    (out / "letters.txt").write_text("mine")
    assert "no packed model" in razor("quantize", "model=tiny_llama", f"out={out}").problem
    assert (out / "letters.txt").read_text() == "mine"
