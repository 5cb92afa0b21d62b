"""The store of a teacher's targets: what goes in comes out, in few bytes; what does not fit is refused."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from razor.data import teacher_cache_write
from razor.data.document import Document
from razor.data.packing import PackedRows, pack
from razor.data.steps import StepBatches
from razor.data.teacher_cache import (
    Identity,
    TeacherCache,
    cache_folder,
    caches_folder,
    identity_of,
    open_cache,
    rows_digest,
)
from razor.data.teacher_cache_kinds import Kept, Sampled, TopK
from razor.data.teacher_cache_write import Written, say, write_cache
from razor.distill import Targets
from razor.errors import RazorError

KINDS = [Sampled(20), TopK(5), TopK(5, "float32"), TopK(272, "float32")]
SAID = ("kind", "ids", "values", "tail", "entropy", "label_probability")


def made_rows(seed: int = 0, documents: int = 12) -> PackedRows:
    chance = np.random.default_rng(seed)
    sizes = chance.integers(4, 40, documents)
    made = [Document(chance.integers(0, 256, n).astype(np.int32), np.arange(n) >= n // 2) for n in sizes]
    return pack(made, 48, pad_id=256)


ROWS = made_rows()


@pytest.fixture
def identify(base_tokenizer: Any) -> Callable[..., Identity]:
    def make(
        kept: Kept, rows: PackedRows | None = ROWS, teacher: str = "t", dtype: str = "float32"
    ) -> Identity:
        return identity_of(rows, base_tokenizer, teacher, dtype, kept)

    return make


@pytest.fixture
def write(tiny_model: Any, identify: Callable[..., Identity], tmp_path: Path) -> Callable[..., Written]:
    def make(kept: Kept, folder: Path | None = None, **options: Any) -> Written:
        identity = identify(kept)
        place = folder or cache_folder(identity)
        options = {"shard_rows": 2, "load": lambda: tiny_model} | options
        return write_cache(place, ROWS, identity, kept, **options)

    return make


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def assert_same(found: Targets, expected: Targets, exactly: bool = True) -> None:
    for name in SAID:
        one, other = getattr(found, name), getattr(expected, name)
        if isinstance(other, torch.Tensor):
            if name == "ids" or exactly:
                assert torch.equal(one, other), name
            else:
                torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
        else:
            assert one == other


@pytest.mark.parametrize("kept", KINDS, ids=lambda kept: str(kept.describe()))
def test_what_goes_in_comes_out(write: Callable[..., Written], tiny_model: Any, kept: Kept) -> None:
    """Row by row in any order; half precision to a thousandth, everything else to the bit."""
    written = write(kept, rows_per_batch=2)
    cache = TeacherCache(written.folder)
    assert len(cache) == len(ROWS) > 2 * cache.shard_rows and len(ROWS) % 2
    for row in (len(ROWS) - 1, 0, 3, 2, 1):
        first = row - row % 2
        said = say(tiny_model, ROWS, range(first, min(first + 2, len(ROWS))), kept)[row - first]
        assert_same(cache[row], said, exactly=kept.describe().get("values") != "float16")
        assert_same(pickle.loads(pickle.dumps(cache))[row], cache[row])
    with pytest.raises(IndexError):
        cache[len(ROWS)]


@pytest.mark.parametrize("kept", KINDS, ids=lambda kept: str(kept.describe()))
def test_targets_are_of_the_tokens_of_the_batch(
    write: Callable[..., Written], tiny_model: Any, kept: Kept
) -> None:
    """A shuffled, accumulated micro-batch against the plain softmax of the model."""
    rows = replace(ROWS, taught=TeacherCache(write(kept).folder))
    batch = StepBatches(rows, 3, 3, seed=5)[2]
    assert batch.targets is not None
    with torch.no_grad():
        logits = tiny_model(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).logits
    expected = logits[batch.valid].double().softmax(-1)
    label = expected.gather(1, batch.labels[batch.valid][:, None])[:, 0]
    entropy = torch.distributions.Categorical(expected).entropy()
    torch.testing.assert_close(batch.targets.label_probability.double(), label, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(batch.targets.entropy.double(), entropy, rtol=1e-4, atol=1e-6)
    if kept.kind == "topk":
        told = batch.targets.values.double().exp()
        torch.testing.assert_close(told, expected.gather(1, batch.targets.ids), rtol=3e-3, atol=1e-6)
        if batch.targets.tail is not None:
            tail = 1 - expected.gather(1, batch.targets.ids).sum(1)
            torch.testing.assert_close(batch.targets.tail.double().exp(), tail, rtol=3e-3, atol=1e-4)
        total = told.sum(1) + (0 if batch.targets.tail is None else batch.targets.tail.double().exp())
        torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-5)
    else:
        assert batch.targets.values.sum(1).allclose(torch.ones(()))


def test_without_a_cache_batches_have_no_targets() -> None:
    assert StepBatches(ROWS, 1, 2)[0].targets is None


def test_bytes_of_a_token(write: Callable[..., Written]) -> None:
    """Counted by hand from what is stored, headers and offsets aside."""
    sampled, top = write(Sampled(20)), write(TopK(5))
    cache = TeacherCache(sampled.folder)
    entries = sum(int((cache[row].values > 0).sum()) for row in range(len(ROWS)))
    tokens = sum(ROWS[row].tokens for row in range(len(ROWS)))
    assert sampled.tokens == top.tokens == tokens
    headers = 700 * sampled.shards
    assert 0 < sampled.bytes - ((4 + 4 + 1) * tokens + (2 + 1) * entries) < headers
    assert 0 < top.bytes - ((4 + 4 + 4) * tokens + 5 * (2 + 2) * tokens) < headers
    found = sampled.to_dict()
    assert found["bytes_per_token"] == sampled.bytes / tokens and found["tokens_per_second"] > 0
    assert sampled.bytes == sum(path.stat().st_size for path in sampled.folder.glob("*.safetensors"))
    assert sampled.bytes <= tokens * Sampled(20).most_bytes(272) + headers
    assert top.bytes <= tokens * TopK(5).most_bytes(272) + headers


def test_draws_depend_on_seed_and_row_alone(tiny_model: Any) -> None:
    kept, last = Sampled(20), len(ROWS) - 1
    alone, together = (
        say(tiny_model, ROWS, range(last, last + 1), kept)[0],
        say(tiny_model, ROWS, range(len(ROWS)), kept),
    )
    assert torch.equal(alone.ids, together[last].ids) and torch.equal(alone.values, together[last].values)
    other = say(tiny_model, ROWS, range(last, last + 1), Sampled(20, seed=1))[0]
    assert other.ids.shape != alone.ids.shape or not torch.equal(other.ids, alone.ids)
    chances = [kept.chance(row, 3) for row in range(3)]
    assert not torch.equal(chances[0], chances[1]) and torch.equal(chances[0], kept.chance(0, 3))
    assert torch.equal(kept.chance(2, 3).sort(-1).values, chances[2])


def damaged(written: Written, how: str) -> None:
    data = written.folder / "shard_00001.safetensors"
    note, content = data.with_suffix(".json"), data.read_bytes()
    if how == "flipped":
        data.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif how == "cut":
        data.write_bytes(content[:-10])
    elif how == "gone":
        data.unlink()
    elif how == "missing":
        note.unlink()
    elif how == "note":
        note.write_text("{")


DAMAGE = {
    "flipped": "checksum does not match",
    "cut": "bytes in place of",
    "gone": "it is gone",
    "missing": "incomplete: 1 of",
    "note": "is damaged",
}


@pytest.mark.parametrize(("how", "reason"), DAMAGE.items())
def test_a_damaged_shard_is_refused_and_made_again(
    write: Callable[..., Written], identify: Callable[..., Identity], how: str, reason: str
) -> None:
    written = write(Sampled(20))
    whole = files_of(written.folder)
    damaged(written, how)
    with pytest.raises(RazorError, match=reason) as caught:
        open_cache(identify(Sampled(20)), None, "razor cache_teacher THIS")
    assert "razor cache_teacher THIS" in str(caught.value) and str(written.folder) in str(caught.value)
    again = write(Sampled(20))
    assert files_of(written.folder) == whole and again.made == TeacherCache(again.folder).note(1)["tokens"]  # type: ignore[index]
    assert len(open_cache(identify(Sampled(20)), None, "")) == len(ROWS)


def test_a_damaged_manifest_is_refused(
    write: Callable[..., Written], identify: Callable[..., Identity]
) -> None:
    folder = write(Sampled(20)).folder
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"shard_rows": 2', '"shard_rows": 3'))
    for place in (None, folder):
        with pytest.raises(RazorError, match=r"manifest\.json' is damaged: remove"):
            open_cache(identify(Sampled(20)), place, "")
    with pytest.raises(RazorError, match="is damaged: remove"):
        write(Sampled(20))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": made_rows(1)}, "the training text"),
        ({"teacher": "other"}, "the teacher"),
        ({"dtype": "bfloat16"}, r"trainer.compute_dtype \(there float32, here bfloat16\)"),
        ({"kept": Sampled(21)}, r"what is kept \(there kind=sampled draws=20 seed=0, here .*draws=21"),
        ({"kept": Sampled(20, seed=1)}, "what is kept"),
        ({"kept": TopK(20)}, "what is kept"),
    ],
)
@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
def test_what_is_stale_is_refused(
    write: Callable[..., Written],
    identify: Callable[..., Identity],
    change: dict[str, Any],
    words: str,
    given: bool,
) -> None:
    folder = write(Sampled(20)).folder
    wanted = identify(**({"kept": Sampled(20)} | change))
    with pytest.raises(RazorError, match=f"differ in {words}") as caught:
        open_cache(wanted, folder if given else None, "razor cache_teacher THIS")
    assert str(folder) in str(caught.value) and "Make it with: razor cache_teacher THIS" in str(caught.value)


def test_another_tokenizer_is_refused(write: Callable[..., Written], base_tokenizer: Any) -> None:
    write(Sampled(20))
    other = copy.deepcopy(base_tokenizer)
    other.add_tokens(["<new>"])
    with pytest.raises(RazorError, match="differ in the tokenizer"):
        open_cache(identity_of(ROWS, other, "t", "float32", Sampled(20)), None, "")


def test_of_text_that_is_not_known_yet(
    write: Callable[..., Written], identify: Callable[..., Identity]
) -> None:
    """What cannot be it whatever the text is said before the text is made."""
    with pytest.raises(RazorError, match="No teacher's targets lie in"):
        open_cache(identify(Sampled(20), rows=None), None, "")
    write(Sampled(20))
    assert len(open_cache(identify(Sampled(20), rows=None), None, "")) == len(ROWS)
    with pytest.raises(RazorError, match="what is kept"):
        open_cache(identify(TopK(3), rows=None), None, "")


def test_each_difference_of_rows_counts() -> None:
    base = rows_digest(ROWS)
    assert rows_digest(made_rows()) == base
    document = ROWS.documents[0]
    silent = [Document(document.tokens, document.response & False), *ROWS.documents[1:]]
    changes: list[dict[str, Any]] = [
        {"documents": silent},
        {"rows": ROWS.rows[::-1]},
        {"rows": ROWS.rows[1:]},
        {"pad_id": 9},
    ]
    for other in (replace(ROWS, **change) for change in changes):
        assert rows_digest(other) != base


def test_a_folder_of_something_else_is_left_alone(write: Callable[..., Written], tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(RazorError, match="is no cache of a teacher"):
        write(Sampled(20), tmp_path / "letters")
    mine = write(Sampled(20), tmp_path / "mine").folder
    before = files_of(mine)
    with pytest.raises(RazorError, match="holds other targets: they differ in what is kept"):
        write(Sampled(21), mine)
    assert files_of(mine) == before and not caches_folder().exists()
    with pytest.raises(RazorError, match=r"holds no teacher's targets \(no manifest\.json\)"):
        TeacherCache(tmp_path / "letters")


def test_a_full_disk_is_said_before_the_teacher_speaks(
    write: Callable[..., Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Disk", (), {"free": 100}))
    monkeypatch.setattr(teacher_cache_write, "say", None)
    with pytest.raises(RazorError, match=r"this cache needs about .* out="):
        write(Sampled(20))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Sampled(0), "draws=0 must be from 1 to 65535"),
        (lambda: Sampled(65536), "draws=65536"),
        (lambda: TopK(0), "k=0 must be at least 1"),
        (lambda: TopK(3, "int8"), "values='int8'. Choices: float16, float32"),
    ],
)
def test_numbers_out_of_range(make: Callable[[], Kept], words: str) -> None:
    with pytest.raises(RazorError, match=words):
        make()


def test_k_of_more_than_the_vocabulary(write: Callable[..., Written]) -> None:
    with pytest.raises(RazorError, match="k=273 is more than the 272 tokens"):
        write(TopK(273))
    with pytest.raises(RazorError, match="rows_per_batch=0"):
        write(TopK(2), rows_per_batch=0)


def test_what_is_whole_is_not_made_twice(write: Callable[..., Written]) -> None:
    first = write(Sampled(20))
    again = write(Sampled(20), load=lambda: pytest.fail("the teacher was loaded"))
    assert first.made == first.tokens == again.tokens and (again.made, again.bytes) == (0, first.bytes)
    assert again.to_dict()["tokens_per_second"] == 0


KILLED = """
import os, signal, sys, torch
sys.path[:0] = [{tests!r}]
import test_teacher_cache as t
from razor.data import checked
from transformers import LlamaForCausalLM
from pathlib import Path
import json
calls = []
honest = checked.{place}
def dies(*args, **options):
    calls.append(args)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*args, **options)
checked.{place} = dies
model = LlamaForCausalLM.from_pretrained({model!r}).eval()
identity = json.loads(Path({identity!r}).read_text())
t.write_cache(Path({folder!r}), t.ROWS, identity, t.Sampled(20), lambda: model, shard_rows=2)
"""


@pytest.mark.parametrize(("place", "call"), [("save", 2), ("file_digest", 2)], ids=["before", "between"])
def test_killed_and_taken_up_again(
    write: Callable[..., Written],
    identify: Callable[..., Identity],
    tiny_model: Any,
    tmp_path: Path,
    place: str,
    call: int,
) -> None:
    """By SIGKILL, before a shard is written and between it and its note: the same bytes as without."""
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "identity").write_text(json.dumps(identify(Sampled(20))))
    folder = tmp_path / "killed"
    script = KILLED.format(
        tests=str(Path(__file__).parent),
        place=place,
        call=call,
        model=str(tmp_path / "model"),
        identity=str(tmp_path / "identity"),
        folder=str(folder),
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert TeacherCache(folder).note(0) is not None and TeacherCache(folder).note(1) is None
    resumed = write(Sampled(20), folder)
    whole = write(Sampled(20), tmp_path / "whole")
    assert 0 < resumed.made < whole.made
    assert files_of(folder) == files_of(whole.folder)
