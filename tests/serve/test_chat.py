"""Talking to a model in the terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.serve.chat import Chat
from razor.serve.engine import Settings
from razor.serve.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def engine(packed: Path) -> TransformersEngine:
    return TransformersEngine.open(packed, "tiny", packed=True)


def test_the_conversation_goes_on(engine: TransformersEngine, capsys: pytest.CaptureFixture[str]) -> None:
    chat = Chat(engine, Settings(max_new_tokens=6))
    answer = chat.answer("Hello")
    assert chat.messages[-1] == {"role": "assistant", "content": answer.text}
    assert capsys.readouterr().out == answer.text + "\n"
    chat.answer("And now?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_the_model_gets_all_of_it(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    write = engine._write
    monkeypatch.setattr(engine, "_write", lambda m, *rest: asked.append(list(m)) or write(m, *rest))
    chat = Chat(engine, Settings(max_new_tokens=2), system="Be brief.", show=lambda text: None)
    chat.answer("one")
    chat.answer("two")
    assert [[message["role"] for message in one] for one in asked] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
    ]
    assert asked[1][0]["content"] == "Be brief."


def test_a_message_that_cannot_be_answered_is_taken_back(engine: TransformersEngine) -> None:
    chat = Chat(engine, Settings(max_new_tokens=2), show=lambda text: None)
    chat.answer("fine")
    before = list(chat.messages)
    with pytest.raises(RazorError, match="start a new one"):
        chat.answer("x" * 5000)
    assert chat.messages == before


def test_ctrl_c_ends_an_answer_and_keeps_it(engine: TransformersEngine) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if "".join(shown).strip() and not text.endswith("\n"):
            raise KeyboardInterrupt

    chat = Chat(engine, Settings(max_new_tokens=200, temperature=1.5), show=show)
    with pytest.raises(KeyboardInterrupt):
        chat.answer("Hello")
    again = Chat(engine, Settings(max_new_tokens=2), show=lambda text: None)
    assert again.answer("Hello").tokens <= 2  # the engine is free again


def test_loop_reads_until_told_to_leave(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    chat, heard = Chat(engine, Settings(max_new_tokens=2), show=shown.append), []

    def answer(message: str) -> Any:
        heard.append((message, len(chat.messages)))
        if message == "stop":
            raise KeyboardInterrupt
        if message == "long":
            raise RazorError("too long")
        return type("Answer", (), {"figures": lambda self: "2 tokens"})()

    monkeypatch.setattr(chat, "answer", answer)
    for script in (
        ["one", "/new", " two ", "/quit", "never"],
        ["stop", "long", "", "no"],
        ["four", EOFError],
    ):
        lines = iter(script)

        def say(prompt: str, lines: Any = lines) -> str:
            line = next(lines)
            if line is EOFError:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", say)
        chat.messages[:] = [{"role": "user", "content": "before"}]
        chat.loop()
    assert heard == [("one", 1), ("two", 0), ("stop", 1), ("long", 1), ("four", 1)]
    assert "[2 tokens]\n" in shown and "[stopped]\n" in shown and "too long (/new)\n" in shown


def test_the_command_answers_one_prompt(verb: Callable[..., Any], packed: Path) -> None:
    done = verb("chat", f"run={packed}", "prompt=Hello", "max_new_tokens=5", "seed=3")
    assert done.code == 0, done.err
    assert done.out and ">" not in done.out
    found = json.loads(
        verb("chat", f"run={packed}", "prompt=Hello", "max_new_tokens=5", "seed=3", "json=true").out
    )
    assert found["text"].strip() == done.out.strip() and found["engine"] == "transformers"
    assert 1 <= found["tokens"] <= 5 and found["model_bytes"] > 0 and found["ended"] in ("end", "length")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["temperature=-1"], "temperature='-1'"),
        (["top_p=0"], "top_p='0'"),
        (["max_new_tokens=0"], "max_new_tokens='0'"),
        (["engine=llama_cpp"], "needs a GGUF file"),
        (["engine=gguf"], "engine='gguf'"),
        (["json=true", "prompt=null"], "json=true goes with prompt="),
    ],
)
def test_bad_words(verb: Callable[..., Any], packed: Path, words: list[str], expected: str) -> None:
    assert expected in verb("chat", f"run={packed}", "prompt=Hello", *words).problem


def test_a_run_without_a_packed_model(verb: Callable[..., Any], packed: Path, tmp_path: Path) -> None:
    assert "holds no packed model" in verb("chat", f"run={tmp_path}", "prompt=x").problem
    shutil.copytree(packed, tmp_path / "packed")
    (tmp_path / "packed" / "model.safetensors").unlink()
    problem = verb("chat", f"run={tmp_path}", "prompt=x").problem
    assert "model.safetensors" in problem


def test_the_command_talks(verb: Callable[..., Any], packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter(["Hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(script))
    done = verb("chat", f"run={packed}", "max_new_tokens=3")
    assert done.code == 0 and "/quit" in done.out and "token" in done.out
