"""Talking to a packed model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.serve.chat import Chat


@pytest.fixture(scope="module")
def run(finished_run: Any) -> Path:
    assert finished_run.code == 0, finished_run.err
    return finished_run.folder


@pytest.mark.parametrize("place", ["", "packed"])
def test_answers_from_a_run_and_from_a_packed_folder(
    run: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = Chat.open(run / place, max_new_tokens=6)
    text = chat.answer("Hello")
    assert isinstance(text, str) and chat.messages[-1] == {"role": "assistant", "content": text}
    assert text.strip() in capsys.readouterr().out
    chat.answer("And now?")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2


def test_the_same_seed_says_the_same(run: Path) -> None:
    said = [Chat.open(run, max_new_tokens=12, seed=seed).answer("Hello") for seed in (1, 1, 2, 3)]
    assert said[0] == said[1] and len(set(said)) > 1
    greedy = [
        Chat.open(run, max_new_tokens=12, temperature=0.0, seed=seed).answer("Hello") for seed in (1, 2)
    ]
    assert greedy[0] == greedy[1]


def test_goes_on_with_text_where_there_is_no_chat_template(run: Path) -> None:
    chat = Chat.open(run, max_new_tokens=4)
    chat.tokenizer.chat_template = None
    assert isinstance(chat.answer("Once upon a"), str)


def test_loop_reads_until_told_to_leave(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, heard = Chat.open(run, max_new_tokens=2), []
    monkeypatch.setattr(chat, "answer", lambda message: heard.append((message, len(chat.messages))))
    for script in (["one", "/new", " two ", "/quit", "never"], ["three", "", "never"], ["four", EOFError]):
        lines = iter(script)

        def say(prompt: str, lines: Any = lines) -> str:
            line = next(lines)
            if line is EOFError:
                raise EOFError
            return line

        monkeypatch.setattr("builtins.input", say)
        chat.messages[:] = [{"role": "user", "content": "before"}]
        chat.loop()
    assert heard == [("one", 1), ("two", 0), ("three", 1), ("four", 1)]


def test_a_run_without_a_packed_model(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RazorError, match="no packed model"):
        Chat.open(tmp_path)
    shutil.copytree(run / "packed", tmp_path / "packed")
    (tmp_path / "packed" / "model.safetensors").unlink()
    with pytest.raises(RazorError, match="cannot be read"):
        Chat.open(tmp_path)


def test_the_command_answers_one_prompt(razor: Callable[..., Any], run: Path) -> None:
    done = razor("chat", f"run={run}", "prompt=Hello", "max_new_tokens=5", "seed=3")
    assert done.code == 0, done.err
    assert done.out and ">" not in done.out
    for words in (["temperature=-1"], ["top_p=0"], ["max_new_tokens=0"]):
        problem = razor("chat", f"run={run}", "prompt=Hello", *words).problem
        assert words[0].partition("=")[0] in problem


def test_the_command_talks(razor: Callable[..., Any], run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = iter(["Hello", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(script))
    done = razor("chat", f"run={run}", "max_new_tokens=3")
    assert done.code == 0 and "/quit" in done.out
