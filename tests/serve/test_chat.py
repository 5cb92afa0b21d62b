"""Talking to a model in the terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.serve import opening
from razor.serve.answer import Answer, Settings, said
from razor.serve.chat import Chat
from razor.serve.engine import Writing
from razor.serve.transformers_engine import TransformersEngine
from tests.serve.scripted import Scripted, endless, failing, in_turn, saying


@pytest.fixture(scope="module")
def engine(packed: Path) -> TransformersEngine:
    return TransformersEngine.open(packed, "tiny", packed=True)


def quiet(text: str) -> None:
    """Shows nothing."""


def test_the_conversation_goes_on_and_the_model_gets_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Scripted(saying("Hi", " there."))
    chat = Chat(engine, Settings(max_new_tokens=6), system="Be brief.")
    assert chat.answer("one").text == "Hi there."
    assert chat.messages == [said("user", "one"), said("assistant", "Hi there.")]
    assert capsys.readouterr().out == "Hi there.\n"
    chat.answer("two")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert engine.asked[1][0] == [said("system", "Be brief."), *chat.messages[:3]]
    assert engine.asked[1][1].max_new_tokens == 6


def test_a_message_that_cannot_be_answered_is_taken_back(engine: TransformersEngine) -> None:
    chat = Chat(engine, Settings(max_new_tokens=2), show=quiet)
    with pytest.raises(RazorError, match="start a new one"):
        chat.answer("x" * 5000)
    assert chat.messages == []


@pytest.mark.parametrize("script", [failing(), saying(), saying("", "")], ids=["error", "nothing", "no text"])
def test_a_message_without_an_answer_is_not_sent_again(script: Any) -> None:
    """The model would read two questions in a row, which many templates refuse."""
    engine = Scripted(in_turn([saying("fine"), script, saying("yes")]))
    chat = Chat(engine, show=quiet)
    chat.answer("one")
    with suppress(RazorError):
        chat.answer("two")
    chat.answer("three")
    assert [one["content"] for one in engine.asked[-1][0]] == ["one", "fine", "three"]


@pytest.mark.parametrize("seen", [1, 3])
def test_ctrl_c_keeps_all_that_was_shown(seen: int) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == seen:
            raise KeyboardInterrupt  # as if it came while this was printed

    engine = Scripted(endless())
    chat = Chat(engine, Settings(), show=show)
    with pytest.raises(KeyboardInterrupt):
        chat.answer("Hello")
    assert chat.messages == [said("user", "Hello"), said("assistant", "x" * seen)]
    assert shown == [*"x" * seen, "\n"] and engine.writers == 0  # nobody writes on
    chat.show, engine.script = quiet, saying("on")
    assert chat.answer("And now?").text == "on"


def test_ctrl_c_before_the_first_word_takes_the_message_back() -> None:
    def script(writing: Writing) -> str:
        writing.put("", 1)
        return "end"

    def show(text: str) -> None:
        if text == "":
            raise KeyboardInterrupt

    chat = Chat(Scripted(script), show=show)
    with pytest.raises(KeyboardInterrupt):
        chat.answer("Hello")
    assert chat.messages == []


def test_loop_reads_until_told_to_leave(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    chat, heard = Chat(engine, Settings(max_new_tokens=2), show=shown.append), []

    def answer(message: str) -> Any:
        heard.append((message, len(chat.messages)))
        if message == "stop":
            raise KeyboardInterrupt
        if message == "long":
            raise RazorError("too long")
        return Answer(tokens=2, model_bytes=1_500_000)

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
    assert "[2 tokens, model 1.5 MB]\n" in shown and "[stopped]\n" in shown and "too long (/new)\n" in shown


def test_the_command_answers_one_prompt(verb: Callable[..., Any], packed: Path) -> None:
    done = verb("chat", f"run={packed}", "prompt=Hello", "max_new_tokens=5", "seed=3")
    assert done.code == 0, done.err
    assert done.out and "razor" not in done.out
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
        (["prompt= "], "prompt= is empty"),
        (["context=0"], "context='0' must be a whole number"),
        (["threads=many"], "threads='many'"),
        (["kv=f32"], "kv='f32'"),
        (["run=null"], "run=null is empty: give a run folder"),
        (["run="], "run= is empty: give a run folder"),
        (["run=2024"], "run='2024' does not exist"),
        (["run=runs/quant=w4,a b"], "run='runs/quant=w4,a b' does not exist"),
        (["promt=x"], "promt"),
    ],
)
def test_bad_words(verb: Callable[..., Any], packed: Path, words: list[str], expected: str) -> None:
    assert expected in verb("chat", f"run={packed}", "prompt=Hello", *words).problem


@pytest.mark.parametrize(
    "text",
    [
        "Hello, how are you?",
        "It's 5 o'clock!",
        "a=b, {c: d}, [e",
        '"quoted"',
        "${oc.env:HOME} $HOME",
        "C:\\new \\",
        "2024",
        "true",
        "~x",
        "two\nlines  ",
        "Schöne Grüße (and more)",
    ],
)
def test_texts_reach_the_model_as_they_were_typed(
    verb: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    engine = Scripted(saying("fine"))
    monkeypatch.setattr(opening, "open_engine", lambda *_: engine)
    done = verb("chat", "run=x", f"prompt={text}", f"system={text}")
    assert (done.code, done.out) == (0, "fine\n"), done.err
    assert engine.asked[0][0] == [said("system", text), said("user", text)] and engine.freed == 1


def test_run_is_missing(verb: Callable[..., Any]) -> None:
    assert "run has no default: give it as run=..." in verb("chat", "prompt=x").problem


def test_a_folder_whose_name_is_a_number(
    verb: Callable[..., Any], packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(packed, tmp_path / "2024")
    monkeypatch.chdir(tmp_path)
    done = verb("chat", "run=2024", "prompt=Hello", "max_new_tokens=2", "json=true")
    assert json.loads(done.out)["model"] == "2024", done.err


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
