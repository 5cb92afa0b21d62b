from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from razor.data import tokenizing
from razor.data.tokenizing import blocks_of, encode, tokenized
from razor.errors import RazorError

from .given_source import GivenTexts

TEXTS = [f"{n} " * (n % 17) for n in range(200)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 300)


def joined(blocks):
    blocks = list(blocks)
    return [
        np.concatenate([getattr(b, name) for b in blocks]).tolist()
        for name in ("tokens", "response", "sizes")
    ]


def test_blocks_hold_all_records_in_order(small_blocks, monkeypatch):
    records = list(GivenTexts(TEXTS).records())
    blocks = list(blocks_of(records))
    assert [record for block in blocks for record in block] == records
    assert all(sum(len(text) for _, text in block[:-1]) < 300 for block in blocks)
    monkeypatch.setattr(tokenizing, "BLOCK_RECORDS", 7)
    assert {len(block) for block in blocks_of([("", "")] * 20)} == {7, 6}
    assert list(blocks_of([])) == []


@pytest.mark.parametrize("workers", [1, 2, None])
def test_what_comes_out_does_not_depend_on_the_processes(small_blocks, monkeypatch, base_tokenizer, workers):
    monkeypatch.setattr(tokenizing, "_cores", lambda: 2)
    source = GivenTexts(TEXTS)
    found = list(tokenized(source, base_tokenizer, source.records(), workers))
    documents = source.documents(base_tokenizer)
    assert joined(found) == [
        np.concatenate([d.tokens for d in documents]).tolist(),
        np.concatenate([d.response for d in documents]).tolist(),
        [len(d) for d in documents],
    ]
    assert sum(block.records for block in found) == len(TEXTS)
    assert sum(block.characters for block in found) == source.size()
    time.sleep(0.1)
    ended = time.monotonic() + 120
    while multiprocessing.active_children() and time.monotonic() < ended:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


def test_little_text_starts_no_process(monkeypatch, base_tokenizer):
    monkeypatch.setattr(tokenizing, "_in_processes", None)
    source = GivenTexts(TEXTS)
    assert len(list(tokenized(source, base_tokenizer, source.records()))) == 1


def test_few_blocks_are_read_ahead(small_blocks, base_tokenizer):
    source = GivenTexts(["word " * 100] * 60)
    blocks = tokenized(source, base_tokenizer, source.records(), 2)
    next(blocks)
    assert source.read <= 2 * tokenizing.AHEAD + 1
    blocks.close()


def test_odd_records_are_counted(base_tokenizer):
    records = list(GivenTexts(["a", "bad", "", "bad too"]).records())
    block = encode(GivenTexts([], tolerant=True), base_tokenizer, records)
    assert (block.left_out, block.first, block.records, len(block.sizes)) == (2, "Text 1 is bad.", 4, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_record_is_an_error(small_blocks, base_tokenizer, workers):
    source = GivenTexts([*TEXTS, "bad", *TEXTS])
    with pytest.raises(RazorError, match="Text 200 is bad"):
        list(tokenized(source, base_tokenizer, source.records(), workers))


def test_a_process_that_ends_is_one_line(small_blocks, base_tokenizer):
    source = GivenTexts([*TEXTS, "die"])
    with pytest.raises(RazorError, match=r"data\.workers") as error:
        list(tokenized(source, base_tokenizer, source.records(), 2))
    assert "\n" not in str(error.value)


ORPHANS = """
import os, sys, time
sys.path[:0] = [{tests!r}]
if __name__ == "__main__":
    from given_source import GivenTexts
    from razor.data import tokenizing
    from razor.models.byte_tokenizer import byte_tokenizer
    tokenizing.BLOCK_CHARACTERS = 10
    source = GivenTexts(["some text"] * 100000)
    blocks = tokenizing.tokenized(source, byte_tokenizer(), source.records(), 2)
    next(blocks)
    children = open(f"/proc/self/task/{{os.getpid()}}/children").read().split()
    print(*children, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_processes_end_with_a_killed_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    started = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment
    )
    children = started.stdout.readline().split()
    started.send_signal(signal.SIGKILL)
    started.wait()
    started.stdout.close()
    ended = time.monotonic() + 120
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < ended:
        time.sleep(0.1)
    assert children and not [child for child in children if Path(f"/proc/{child}").exists()]


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "two"])
def test_numbers_of_processes(base_tokenizer, workers):
    with pytest.raises(RazorError, match=r"data\.workers="):
        next(tokenized(GivenTexts([]), base_tokenizer, [], workers))
