"""Answers of a real GGUF through llama.cpp."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.serve.answer import Answer, Settings
from razor.serve.llama_engine import LlamaEngine

pytestmark = pytest.mark.slow

ASKED = [{"role": "user", "content": "What is the capital of Germany? Answer with one word."}]


@pytest.fixture(scope="module")
def engine(real_gguf: Path) -> Iterator[LlamaEngine]:
    engine = LlamaEngine(real_gguf, context=1024)
    yield engine
    engine.close()


def last(engine: LlamaEngine, messages: Any = ASKED, **settings: Any) -> Answer:
    return list(engine.answer(messages, Settings(**settings)))[-1]


def test_it_answers_and_counts(engine: LlamaEngine, real_gguf: Path) -> None:
    growing = list(engine.answer(ASKED, Settings(temperature=0)))
    whole = growing[-1]
    assert "Berlin" in whole.text and whole.ended == "end"
    assert all(b.text.startswith(a.text) for a, b in pairwise(growing))
    tokens = engine._server.ask("/tokenize", content=whole.text)["tokens"]
    assert whole.tokens - len(tokens) in (0, 1)  # the mark at which it ended counts, or does not
    assert 0.9 < whole.model_bytes / real_gguf.stat().st_size <= 1
    assert whole.first and whole.tokens_per_second and whole.process_bytes > whole.model_bytes
    assert (engine.name, engine.runtime) == ("SmolLM2-135M-Instruct.Q4_1", "llama_cpp")


def when_asked(engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once llama.cpp has got the next question, and begins to read it."""
    asked, ask = threading.Event(), engine._ask

    def tell(*words: Any) -> Any:
        stream = ask(*words)
        get = stream._connection.getresponse

        def answer() -> Any:
            asked.set()
            return get()

        monkeypatch.setattr(stream._connection, "getresponse", answer)
        return stream

    monkeypatch.setattr(engine, "_ask", tell)
    return asked


def test_limits(engine: LlamaEngine) -> None:
    found = last(engine, [{"role": "user", "content": "Write a poem about the sea."}], max_new_tokens=16)
    assert found.ended == "length" and found.tokens == 16


def test_seeds(real_gguf: Path) -> None:
    """First thing of a newly loaded model: what it has read before would change the rounding."""
    poem = [{"role": "user", "content": "Write a poem about the sea."}]
    said: list[list[str]] = []
    for _ in range(2):
        engine = LlamaEngine(real_gguf, context=512)
        try:
            said.append(
                [last(engine, poem, max_new_tokens=16, temperature=2, seed=s).text for s in (1, 2, 3)]
            )
        finally:
            engine.close()
    assert said[0] == said[1] and len(set(said[0])) > 1


def test_system_prompt_and_history_are_read(engine: LlamaEngine) -> None:
    asked = [{"role": "user", "content": "Say banana."}, {"role": "assistant", "content": "Banana."}]
    found = last(engine, [*asked, {"role": "user", "content": "Say it again."}], temperature=0)
    assert "anana" in found.text
    question = [{"role": "user", "content": "Which fruit do you like?"}]
    told = [{"role": "system", "content": "You are a pirate."}, *question]
    assert last(engine, told, temperature=0, max_new_tokens=24).text != (
        last(engine, question, temperature=0, max_new_tokens=24).text
    )


def test_stop_while_it_writes_and_while_it_reads(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, seen = threading.Event(), []
    poem = [{"role": "user", "content": "Write a long poem about the sea."}]
    for answer in engine.answer(poem, Settings(max_new_tokens=900), stop):
        seen.append(answer)
        if answer.tokens == 4:
            stop.set()
    assert seen[-1].ended == "stopped" and 4 <= seen[-1].tokens < 60
    long = [{"role": "user", "content": " ".join(str(n) for n in range(200))}]
    stop = threading.Event()
    with monkeypatch.context() as patch:
        asked = when_asked(engine, patch)
        stopping = threading.Thread(target=lambda: asked.wait(60) and stop.set())
        stopping.start()
        stopped = list(engine.answer(long, Settings(max_new_tokens=900), stop))[-1]
        stopping.join(60)
    assert asked.is_set() and stopped.ended == "stopped" and stopped.tokens < 60
    assert last(engine, max_new_tokens=1).tokens == 1  # free for the next one


@pytest.mark.parametrize("question", ["Write a long poem about the sea.", " ".join(map(str, range(200)))])
def test_closing_from_another_thread_while_it_writes_or_reads(
    real_gguf: Path, question: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer has left llama.cpp before its memory goes, also where the reader never comes back."""
    engine = LlamaEngine(real_gguf, context=1024)
    asked = [{"role": "user", "content": question}]
    read = when_asked(engine, monkeypatch)
    growing = engine.answer(asked, Settings(max_new_tokens=900))
    closing = threading.Thread(target=lambda: read.wait(60) and engine.close())
    if question.startswith("Write"):
        assert next(growing).ended == ""
    closing.start()
    assert list(growing)[-1].ended == "stopped"
    closing.join(120)
    assert not closing.is_alive() and engine._server._server is None
    with pytest.raises(RazorError, match="was closed"):
        last(engine)


def test_too_long_for_the_context(engine: LlamaEngine) -> None:
    with pytest.raises(RazorError, match=r"exceeds the available context size \(1024 tokens\)"):
        last(engine, [{"role": "user", "content": "word " * 2000}])


def test_a_model_without_a_template_goes_on_with_text(real_gguf: Path, tmp_path: Path) -> None:
    """The same file with the key of its template spelt another way."""
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(real_gguf.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_templatf"))
    engine = LlamaEngine(bare, context=256, kv="f16")
    try:
        text = [{"role": "user", "content": "The opposite of hot is"}]
        found = last(engine, text, max_new_tokens=4, temperature=0)
        assert "cold" in found.text and found.tokens == 4 and found.ended == "length"
    finally:
        engine.close()


def test_the_command(verb: Callable[..., Any], real_gguf: Path) -> None:
    done = verb("chat", f"run={real_gguf}", f"prompt={ASKED[0]['content']}", "temperature=0", "json=true")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert "Berlin" in found["text"] and found["engine"] == "llama_cpp" and found["tokens_per_second"] > 0
