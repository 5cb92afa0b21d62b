from __future__ import annotations

import os
import pickle
from functools import partial

import numpy as np
import pytest

from razor.data.checked import save_checked, shard_path
from razor.data.tensor_files import OPEN_FILES, TensorFiles

KINDS = (np.uint8, np.uint16, np.uint32, np.int32, np.int64)


@pytest.fixture
def files(tmp_path):
    for number in range(3):
        arrays = {np.dtype(kind).name: np.arange(number, number + 50).astype(kind) for kind in KINDS}
        save_checked(shard_path(tmp_path, number), arrays)
    return TensorFiles(partial(shard_path, tmp_path))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("start", "stop"), [(0, None), (3, 9), (49, 50), (7, 7), (40, 99)])
def test_slices(files, kind, start, stop):
    for number in (2, 0, 2):
        found = files.read(number, np.dtype(kind).name, start, stop)
        assert found.dtype == kind and found.tolist() == list(range(number, number + 50))[start:stop]


def test_few_files_are_open(tmp_path):
    save_checked(shard_path(tmp_path, 0), {"a": np.arange(3)})
    files = TensorFiles(lambda _: shard_path(tmp_path, 0))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3 * OPEN_FILES):
        assert files.read(number, "a").tolist() == [0, 1, 2]
    assert len(os.listdir("/proc/self/fd")) <= before + OPEN_FILES
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert files.read(0, "a", 1, 2).tolist() == [1]


def test_pickles_without_what_is_open(files):
    files.read(0, "int32")
    data = pickle.dumps(files)
    assert len(data) < 1000
    assert pickle.loads(data).read(1, "int32", 0, 2).tolist() == [1, 2]


def test_without_pread(files, monkeypatch):
    monkeypatch.delattr(os, "pread")
    assert files.read(1, "uint16", 3, 5).tolist() == [4, 5]
