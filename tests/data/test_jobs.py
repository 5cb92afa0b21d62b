"""Main jobs whose text lies on disk, is mixed, or is not packed."""

from __future__ import annotations

import json
import logging
import re

import pytest


@pytest.fixture
def texts(tmp_path):
    chats = tmp_path / "chats.jsonl"
    lines = [json.dumps({"prompt": f"What is {n} and {n}?", "response": f"{n + n}."}) for n in range(80)]
    chats.write_text("\n".join(lines))
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(f"{n} and {n} are {n + n}." for n in range(300)))
    return chats, plain


def losses(folder):
    return json.loads((folder / "report.json").read_text())["rows"]


@pytest.mark.parametrize(
    "words", [["data.on_disk=true"], ["data.pack=false", "data.order=bucketed"]], ids=str
)
def test_the_same_twice(main_job, texts, words):
    """Text on disk, made and then found; rows of many lengths."""
    given = ["data=local_jsonl", f"data.source.path={texts[0]}", "-data.source.tokens", *words]
    whole = main_job(*given, "trainer.max_steps=3")
    assert whole.code == 0, whole.err
    if "data.on_disk=true" in words:
        assert list((main_job.cache / "layouts").rglob("shard_00000.safetensors"))
    again = main_job(*given, "trainer.max_steps=3")
    assert losses(again.folder) == losses(whole.folder)
    report = json.loads((whole.folder / "report.json").read_text())
    assert report["train_tokens_distinct"] > 1000


def test_a_mix(main_job, texts):
    parts = [f"data.source.parts.{n}.source.path={p}" for n, p in zip(("chats", "texts"), texts, strict=True)]
    done = main_job("data=mix", *parts, "-data.source.tokens")
    assert done.code == 0, done.err
    assert re.search(r"Mix of [\d,]+ tokens: chats (70|69)\.\d+%", done.err)
    short = main_job("data=mix", *parts, "data.source.tokens=1000000")
    assert "data.source.when_short=repeat" in short.problem


def test_cached_targets_of_text_on_disk(main_job, razor, texts):
    words = ["data=local_jsonl", f"data.source.path={texts[0]}", "data.on_disk=true", "-data.source.tokens"]
    shared = [
        word for word in main_job.words(*words) if not word.startswith(("evals", "logger", "trainer.max"))
    ]
    made = razor("cache_teacher", *shared)
    assert made.code == 0, made.err
    done = main_job(*words, "teacher=cached", "distill=kld")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data=paper_mix"], "In the part 'infinity' of the mix: The data set 'BAAI/Infinity-Instruct'"),
        (["data=hub_text"], "The data set 'Salesforce/wikitext'"),
        (["data=local_text", "data.source.path=nowhere/*.txt"], "nowhere/*.txt"),
    ],
)
def test_text_out_of_reach_is_said_before_anything(main_job, monkeypatch, words, told):
    def unreachable(id, revision):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("razor.data.sources.hub.revision_of", unreachable)
    monkeypatch.setattr("razor.models.RandomModel.prepare", None)
    logging.disable(logging.NOTSET)
    assert told in main_job(*words, "-data.source.tokens").problem


@pytest.mark.parametrize(
    "word", ["data.order=bucketed", "data.order=sorted", "data.workers=0", "data.pack=2"]
)
def test_bad_words(main_job, word):
    key = word.partition("=")[0]
    given = ["data=local_text", "data.source.path=nowhere.txt", "-data.source.tokens"]
    assert key in main_job(*given, word).problem
