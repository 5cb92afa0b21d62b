"""The text that studies share comes into the cache as it lies here, and is what the ladder asks for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from razor.cli.config import composed
from razor.cli.teacher import teaching
from razor.data.document import Document
from razor.data.shards import load_shard, save_shard
from razor.data.sources.base import Teacher
from razor.data.teacher_made import TeacherMade
from razor.errors import RazorError
from razor.storage import cache_dir, digest
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))

import study_text


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder of texts with one text of two shards."""
    folder = tmp_path / "texts" / "small"
    for number in (0, 1):
        tokens = np.arange(5, dtype=np.int32) + number
        save_shard(folder, number, [Document(tokens, tokens > 2)], [2])
    (folder / "recipe.json").write_text(json.dumps({"here": str(tmp_path)}))
    return folder.parent


def test_a_text_is_read_from_the_cache_as_it_lies_here(texts: Path, tmp_path: Path) -> None:
    (placed,) = study_text.place(texts)
    assert placed == cache_dir() / "teacher_made" / digest({"here": str(tmp_path)})
    for number in (0, 1):
        here, there = load_shard(texts / "small", number), load_shard(placed, number)
        assert here is not None and there is not None
        assert np.array_equal(here[0][0].tokens, there[0][0].tokens) and here[1] == there[1]


def test_what_the_cache_has_stays(texts: Path) -> None:
    (placed,) = study_text.place(texts)
    own = np.array([7, 8], dtype=np.int32)
    save_shard(placed, 0, [Document(own, own > 7)], [1])
    study_text.place(texts)
    kept = load_shard(placed, 0)
    assert kept is not None and np.array_equal(kept[0][0].tokens, own)


def test_a_damaged_shard_is_not_copied(texts: Path) -> None:
    data = texts / "small" / "shard_00001.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(RazorError, match=r"shard_00001.*damaged"):
        study_text.place(texts)


def test_the_ladder_finds_its_text() -> None:
    told = teaching(composed("train", ["experiment=ladder"]))
    assert isinstance(told.source, TeacherMade)
    teacher = Teacher(told.teacher.fingerprint(), told.load_teacher)
    assert told.source.folder(told.model.tokenizer(), teacher) in study_text.place()
