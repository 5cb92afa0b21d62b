"""Checkpoint files: whole or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from razor.errors import RazorError
from razor.train.checkpoints import LAST, AtomicCheckpointIO, newest

STATE = {"global_step": 3, "state_dict": {"weight": torch.arange(20_000.0)}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / LAST)
    return tmp_path / LAST


def test_newest_is_none_before_the_first(tmp_path: Path) -> None:
    assert newest(tmp_path) is None and newest(tmp_path / "not_there") is None


def test_saves_whole_and_alone(saved: Path) -> None:
    assert newest(saved.parent) == saved
    assert torch.equal(
        torch.load(saved, weights_only=True)["state_dict"]["weight"], STATE["state_dict"]["weight"]
    )
    assert [path.name for path in saved.parent.iterdir()] == [LAST]


@pytest.mark.parametrize("kept", [0, 100, 40_000, -1])
def test_a_damaged_one_is_refused(saved: Path, kept: int) -> None:
    saved.write_bytes(saved.read_bytes()[:kept])
    with pytest.raises(RazorError, match=r"damaged.*remove it") as error:
        newest(saved.parent)
    assert str(saved) in str(error.value) and "\n" not in str(error.value)


def test_a_changed_byte_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1  # in the middle of the weights
    saved.write_bytes(content)
    with pytest.raises(RazorError, match="damaged"):
        newest(saved.parent)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ],
)
def test_a_full_disk_keeps_the_old_one(
    saved: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def fail(checkpoint: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RazorError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(STATE, saved)
    assert saved.read_bytes() == before and [path.name for path in saved.parent.iterdir()] == [LAST]


def test_other_errors_are_not_called_a_full_disk(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="something else"):
        AtomicCheckpointIO().save_checkpoint(STATE, saved)
