from __future__ import annotations

import errno

import numpy as np
import pytest
from safetensors.numpy import load_file

from razor.data import checked
from razor.data.checked import check, note_path, save_checked, shard_path
from razor.errors import RazorError


@pytest.fixture
def data(tmp_path):
    path = shard_path(tmp_path, 3)
    save_checked(path, {"a": np.arange(5, dtype=np.int32)}, rows=2)
    return path


def test_what_was_saved_is_whole(data):
    facts = check(data)
    assert facts["rows"] == 2 and facts["bytes"] == data.stat().st_size and len(facts["sha256"]) == 64
    assert load_file(data)["a"].tolist() == [0, 1, 2, 3, 4]
    assert check(shard_path(data.parent, 4)) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda data: data.write_bytes(data.read_bytes()[:-1]), "bytes in place of"),
        (lambda data: data.write_bytes(data.read_bytes()[:-1] + b"x"), "checksum does not match"),
        (lambda data: data.unlink(), "it is gone"),
        (lambda data: note_path(data).write_text("{"), "damaged"),
        (lambda data: note_path(data).write_text("[]"), "damaged"),
        (lambda data: note_path(data).write_text("{}"), "damaged"),
    ],
)
def test_damage_is_told(data, damage, told):
    damage(data)
    with pytest.raises(RazorError, match=told) as error:
        check(data)
    assert str(data) in str(error.value) and "\n" not in str(error.value)


def test_a_new_write_that_fails_leaves_no_note(data, monkeypatch):
    """The old note would vouch for whatever comes."""

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checked, "save", full)
    with pytest.raises(RazorError, match="No space left"):
        save_checked(data, {"a": np.arange(5)})
    assert check(data) is None
