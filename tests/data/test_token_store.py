from __future__ import annotations

import copy
import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from razor.data import checked, token_store_write, tokenizing
from razor.data.checked import note_path, shard_path
from razor.data.document import from_text
from razor.data.sources.local_jsonl import LocalJsonl
from razor.data.token_store_identity import stores_folder, tokenizer_digest
from razor.data.token_store_write import read_before, stored, token_store
from razor.errors import RazorError

from .given_source import GivenTexts

TEXTS = [f"text number {n} " * (n % 9) for n in range(300)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(tokenizing, "BLOCK_CHARACTERS", 500)
    monkeypatch.setattr(token_store_write, "SHARD_TOKENS", 2000)
    monkeypatch.setattr(tokenizing, "_cores", lambda: 1)  # no processes but where they are asked for


def documents_of(store):
    found = []
    for shard in range(store.shards):
        offsets, _ = store.lengths(shard)
        found += [store.document(shard, int(a), int(b - a)) for a, b in pairwise(offsets)]
    return found


def same(found, wanted):
    return [(d.tokens.tolist(), d.response.tolist()) for d in found] == [
        (d.tokens.tolist(), d.response.tolist()) for d in wanted
    ]


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_are_those_in_memory(base_tokenizer, workers):
    source = GivenTexts(TEXTS)
    store = token_store(source, base_tokenizer, workers)
    assert store.shards > 5 and min(store.tokens[:-1]) >= 2000
    documents = source.documents(base_tokenizer)
    assert same(documents_of(store), documents)
    assert (sum(store.tokens), sum(store.documents)) == (sum(map(len, documents)), len(documents))


def test_answers_of_chats_are_kept(tmp_path, chat_tokenizer):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "{"q" * n}", "response": "{"a" * (n % 7 + 1)}"}}\n' for n in range(60))
    )
    source = LocalJsonl(str(path))
    assert same(documents_of(token_store(source, chat_tokenizer)), source.documents(chat_tokenizer))


def test_wide_vocabularies(base_tokenizer, monkeypatch):
    documents = [from_text(base_tokenizer, text) for text in ("one", "two", "three")]
    documents[1].tokens[1] = 70_000

    class Wide:
        def __len__(self):
            return 70_001

    assert same(documents_of(stored(documents, Wide())), documents)
    assert stored(documents, Wide()).folder == stored(documents, Wide()).folder


def test_made_once(base_tokenizer):
    source = GivenTexts(TEXTS)
    first = token_store(source, base_tokenizer)
    read = source.read
    assert token_store(source, base_tokenizer).folder == first.folder and source.read == read


def test_other_text_tokenizer_or_template_is_another_store(base_tokenizer, chat_tokenizer, tmp_path):
    assert tokenizer_digest(base_tokenizer) != tokenizer_digest(chat_tokenizer)
    other = copy.deepcopy(chat_tokenizer)
    assert tokenizer_digest(other) == tokenizer_digest(chat_tokenizer)
    other.chat_template += " "
    assert tokenizer_digest(other) != tokenizer_digest(chat_tokenizer)
    other = copy.deepcopy(base_tokenizer)
    other(["a", "bcd"], padding=True, truncation=True, max_length=2)  # which it remembers
    assert tokenizer_digest(other) == tokenizer_digest(base_tokenizer)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n')
    first = token_store(LocalJsonl(str(path)), base_tokenizer).folder
    path.write_text('{"text": "two"}\n')
    os.utime(path, ns=(1, 1))
    assert token_store(LocalJsonl(str(path)), base_tokenizer).folder != first


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from given_source import GivenTexts
from razor.data import checked, token_store_write, tokenizing
from razor.models.byte_tokenizer import byte_tokenizer
tokenizing.BLOCK_CHARACTERS, token_store_write.SHARD_TOKENS = 500, 2000
calls, honest = [], checked.{place}
def dies(*args):
    calls.append(args)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*args)
checked.{place} = dies
texts = [f"text number {{n}} " * (n % 9) for n in range(300)]
token_store_write.token_store(GivenTexts(texts, about="killed"), byte_tokenizer(chat=False), 1)
"""


@pytest.mark.parametrize("place", ["save", "file_digest"])
def test_killed_and_taken_up_again(base_tokenizer, place, tmp_path):
    """Before a shard is written, and between it and its note."""
    script = KILLED.format(tests=str(Path(__file__).parent), place=place)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (folder,) = stores_folder().iterdir()
    assert note_path(shard_path(folder, 1)).is_file() and not note_path(shard_path(folder, 2)).is_file()
    kept = shard_path(folder, 1).stat().st_mtime_ns
    source = GivenTexts(TEXTS, about="killed")
    assert token_store(source, base_tokenizer).folder == folder
    assert shard_path(folder, 1).stat().st_mtime_ns == kept
    whole = token_store(GivenTexts(TEXTS, about="whole"), base_tokenizer).folder
    left = [name for name in files_of(folder) if name.startswith(".")]
    assert {n: c for n, c in files_of(folder).items() if n != "source.json"} == {
        n: c for n, c in files_of(whole).items() if n != "source.json"
    } and not left


@pytest.mark.parametrize("which", [[0], [3], [2, 3], [1, 4], "last", "all"])
@pytest.mark.parametrize("how", ["flipped", "note", "gone"])
def test_damaged_shards_are_said_and_made_again(base_tokenizer, which, how, caplog):
    source = GivenTexts(TEXTS)
    store = token_store(source, base_tokenizer)
    whole = files_of(store.folder)
    numbers = {"last": [store.shards - 1], "all": range(store.shards)}.get(str(which), which)
    untouched = [n for n in range(store.shards) if n not in numbers]
    times = [shard_path(store.folder, n).stat().st_mtime_ns for n in untouched]
    for number in numbers:
        data = shard_path(store.folder, number)
        if how == "flipped":
            content = data.read_bytes()
            data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            (data if how == "gone" else note_path(data)).unlink()
    token_store(source, base_tokenizer)
    assert files_of(store.folder) == whole
    assert [shard_path(store.folder, n).stat().st_mtime_ns for n in untouched] == times
    said = [message for message in caplog.messages if "made again" in message]
    assert len(said) == (0 if how == "note" else len(numbers))


def test_a_full_disk_is_one_line_and_what_is_there_stays(base_tokenizer, monkeypatch):
    calls, honest = [], checked.save

    def fills(tensors):
        calls.append(tensors)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(tensors)

    monkeypatch.setattr(checked, "save", fills)
    source = GivenTexts(TEXTS)
    with pytest.raises(RazorError, match="No space left on the disk"):
        token_store(source, base_tokenizer)
    before = source.read
    assert same(documents_of(token_store(source, base_tokenizer)), source.documents(base_tokenizer))
    assert len(calls) - 3 < 1 + len(list(stores_folder().rglob("*.safetensors"))) and before < len(TEXTS)


def test_a_disk_that_is_too_small_is_seen_before(base_tokenizer, monkeypatch):
    monkeypatch.setattr(GivenTexts, "size", lambda self: 10**16)
    source = GivenTexts(TEXTS)
    with pytest.raises(RazorError, match="tokenized text needs about"):
        token_store(source, base_tokenizer)
    assert source.read == 0


def test_odd_records(base_tokenizer, caplog):
    texts = [*TEXTS, "bad one", "", "bad two"]
    with pytest.raises(RazorError, match="Text 300 is bad"):
        token_store(GivenTexts(texts), base_tokenizer)
    tolerant = GivenTexts(texts, tolerant=True)
    for _ in range(2):  # also when it was made before
        caplog.clear()
        assert same(
            documents_of(token_store(tolerant, base_tokenizer)), GivenTexts(TEXTS).documents(base_tokenizer)
        )
        assert caplog.messages == ["2 rows left out; the first: Text 300 is bad."]


def test_nothing_but_odd_records(base_tokenizer):
    with pytest.raises(RazorError, match="Text 0 is bad"):
        token_store(GivenTexts(["bad"] * 5, tolerant=True), base_tokenizer)
    source = GivenTexts(["bad" * 50] * 5000, tolerant=True)
    with pytest.raises(RazorError, match="Text 0 is bad"):
        token_store(source, base_tokenizer)
    assert source.read < 200  # it gives up
    for texts in ([], ["", ""]):
        with pytest.raises(RazorError, match="Nothing was given"):
            token_store(GivenTexts(texts), base_tokenizer)


def test_two_processes_do_not_write_at_once(base_tokenizer, caplog):
    script = """
import sys, time
from pathlib import Path
from razor.data.alone import alone
folder = Path(sys.argv[1])
with alone(folder):
    print("held", flush=True)
    time.sleep(1)
"""
    folder = token_store(GivenTexts(TEXTS), base_tokenizer).folder
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(folder)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout.readline() == "held\n"
    assert token_store(GivenTexts(TEXTS), base_tokenizer).shards
    assert any("waiting for it" in message for message in caplog.messages)
    assert other.wait() == 0
    other.stdout.close()


class Far(GivenTexts):
    """A data set of the hub; `now` is its revision, or None without a network."""

    now: str | None = "first"

    def identity(self):
        return super().identity() | {"revision": self.now}

    def check(self):
        if self.now is None:
            raise RazorError("The hub cannot be reached.")


def test_text_that_was_read_before_needs_no_network(base_tokenizer, monkeypatch, caplog):
    old = token_store(Far(TEXTS[:100]), base_tokenizer)
    os.utime(old.folder / "source.json", (1, 1))
    monkeypatch.setattr(Far, "now", "second")
    assert not read_before(Far([]), lambda: base_tokenizer)  # nobody needs to know
    new = token_store(Far(TEXTS), base_tokenizer)
    assert new.folder != old.folder
    monkeypatch.setattr(Far, "now", None)
    (stores_folder() / "odd").mkdir()
    (stores_folder() / "odd" / "source.json").write_text("{")
    source = Far(TEXTS)
    assert read_before(source, lambda: base_tokenizer)
    assert token_store(source, base_tokenizer).folder == new.folder and source.read == 0
    assert "out of reach" in caplog.text and str(new.folder) in caplog.text
    shard_path(new.folder, 1).unlink()
    assert token_store(source, base_tokenizer).folder == old.folder  # whole, though older
    with pytest.raises(RazorError, match="cannot be reached"):
        token_store(Far(TEXTS, about="never read"), base_tokenizer)
    assert not read_before(Far(TEXTS, about="never read"), lambda: base_tokenizer)


def test_pickles_small(base_tokenizer):
    store = token_store(GivenTexts(TEXTS), base_tokenizer)
    store.document(1, 3, 9)
    data = pickle.dumps(store)
    assert len(data) < 4000
    again = pickle.loads(data)
    assert np.array_equal(again.document(1, 3, 9).tokens, store.document(1, 3, 9).tokens)


def test_the_bar_shows_how_far_it_is(base_tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(token_store_write, "MB", 1000)
    monkeypatch.setattr("razor.terminal.rank", lambda: 0)
    logging.disable(logging.NOTSET)
    token_store(GivenTexts(TEXTS), base_tokenizer)
    bar = capsys.readouterr().err.rsplit("\r", 1)[-1]
    assert "tokenize: 100%" in bar and "tok/s" in bar
