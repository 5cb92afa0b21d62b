"""`razor cache_teacher`: what it prints, where it writes, how it stops and goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "folder",
    "bytes",
    "tokens",
    "bytes_per_token",
    "shards",
    "tokens_made",
    "seconds",
    "tokens_per_second",
}


@pytest.fixture
def words(main_job: Any, tmp_path: Path) -> list[str]:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{n} times {n} is {n * n}." for n in range(150)))
    main_job.cache = tmp_path / "cache"
    return main_job.words(
        "data=local_text", f"data.source.path={text}", "-data.source.tokens", "data.sequence_length=24"
    )


@pytest.mark.parametrize("verb", ["cache_teacher", "cache-teacher"])
def test_one_json_object_and_nothing_else(razor: Any, words: list[str], verb: str) -> None:
    done = razor(verb, *words, "json=true")
    assert done.code == 0 and len(done.out.splitlines()) == 1, done.err
    found = json.loads(done.out)
    assert set(found) == KEYS | {"kind", "draws", "seed", "teacher"}
    assert found["tokens"] == found["tokens_made"] > 500 and found["shards"] > 1
    files = list(Path(found["folder"]).glob("*.safetensors"))
    assert found["bytes"] == sum(path.stat().st_size for path in files) and len(files) == found["shards"]
    assert found["bytes_per_token"] == pytest.approx(found["bytes"] / found["tokens"])
    assert "teacher speaks" in done.err
    again = json.loads(razor(verb, *words, "json=true").out)
    assert again["tokens_made"] == 0 and again["folder"] == found["folder"]


def test_for_people(razor: Any, words: list[str], tmp_path: Path) -> None:
    done = razor("cache_teacher", *words, "kind=topk", "k=3", f"out={tmp_path / 'here'}")
    assert done.code == 0, done.err
    assert str(tmp_path / "here") in done.out and "bytes a token" in done.out and "tokens/s" in done.out
    train = "python train.py teacher=cached teacher_cache.kind=topk teacher_cache.k=3 teacher_cache.values=float16"
    assert train in done.out and f"teacher_targets={tmp_path / 'here'}" in done.out


def test_both_ways_to_say_what_is_kept(razor: Any, words: list[str]) -> None:
    short = json.loads(razor("cache_teacher", *words, "kind=topk", "k=3", "json=true").out)
    long = json.loads(
        razor("cache_teacher", *words, "teacher_cache.kind=topk", "teacher_cache.k=3", "json=true").out
    )
    assert long["tokens_made"] == 0 and long["folder"] == short["folder"]


def test_stopped_and_taken_up_again(razor: Any, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from razor.data import teacher_cache_write

    honest, calls = teacher_cache_write.save_checked, []

    def stops(*shard: Any, **facts: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return honest(*shard, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache_write, "save_checked", stops)
        stopped = razor("cache_teacher", *words)
    assert stopped.code == 130 and "Traceback" not in stopped.err
    assert "Whole shards are kept in" in stopped.err and "the same command goes on" in stopped.err
    done = razor("cache_teacher", *words, "json=true")
    found = json.loads(done.out)
    assert 0 < found["tokens_made"] < found["tokens"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["kind=samples"], "kind=samples. Did you mean 'sampled'?"),
        (["draws=0"], "draws=0 must be from 1 to 65535"),
        (["kind=topk", "k=300"], "k=300 is more than the 272 tokens"),
        (["kind=topk", "values=int4"], "values='int4'. Choices: float16, float32"),
        (["out="], "out= is empty"),
        (["rows_per_batch=0"], "rows_per_batch=0 must be at least 1"),
        (["drws=3"], "There is no key 'drws'. Did you mean 'draws'?"),
        (["json=maybe"], "json"),
    ],
)
def test_bad_words(razor: Any, words: list[str], given: list[str], reason: str) -> None:
    assert reason in razor("cache_teacher", *words, *given).problem
