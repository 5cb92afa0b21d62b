"""llama.cpp in a process of its own: every question that `LlamaRuntime` answers, answered the same."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from razor.errors import RazorError
from razor.models import llama_process
from razor.models.llama_process import LlamaCrash, LlamaProcess, check_apart
from razor.models.llama_runtime import LlamaRuntime

pytest.importorskip("xllamacpp")


def public(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(kind).items() if callable(value) and name[0] != "_"}


def test_it_has_the_same_methods_with_the_same_arguments() -> None:
    here, apart = public(LlamaRuntime), public(LlamaProcess)
    assert set(here) == set(apart) >= {"tokenize", "logits", "read", "close"}
    for name in here:
        assert inspect.signature(here[name]) == inspect.signature(apart[name])
    assert inspect.signature(LlamaRuntime) == inspect.signature(LlamaProcess)


def test_reading_on_is_the_same(gguf: Path) -> None:
    tokens = [(5 * i) % 250 for i in range(40)]
    words: dict[str, Any] = {"context": 64, "kv": "f32", "flash": False}
    with LlamaProcess(gguf, **words) as apart, LlamaRuntime(gguf, **words) as here:
        for start, end in ((0, 30), (30, 31), (31, 40), (0, 5)):
            found = apart.read(tokens[start:end], start)
            assert found.shape == (272,) and np.array_equal(found, here.read(tokens[start:end], start))
        assert np.array_equal(apart.logits(tokens), here.logits(tokens))
        with pytest.raises(RazorError, match="opened for 1 to 64"):
            apart.read(tokens, 30)
        assert apart.read(tokens[:1]).shape == (272,)  # it goes on


def test_a_crash_while_reading_on(gguf: Path) -> None:
    with LlamaProcess(gguf) as llama:
        llama._child.send_signal(signal.SIGABRT)
        with pytest.raises(RazorError, match=r"llama\.cpp crashed .*exit code -6"):
            llama.read([1, 2])


def test_it_imports_nothing_from_the_current_folder(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "runpy", "contextlib", "numpy", "razor"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of another')")
    monkeypatch.chdir(tmp_path)
    with LlamaProcess(gguf.absolute()) as llama:
        assert llama.vocabulary == 272


def test_a_file_is_tried_apart(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_apart(gguf)
    (tmp_path / "none.gguf").write_text("no model")
    check_apart(tmp_path / "none.gguf")  # who opens it says why not
    ask = LlamaProcess._ask

    def abort(self: LlamaProcess, question: dict[str, Any]) -> dict[str, Any]:
        if "start" in question:  # it was opened, and is to read a token
            self._child.send_signal(signal.SIGABRT)
        return ask(self, question)

    monkeypatch.setattr(llama_process.LlamaProcess, "_ask", abort)
    with pytest.raises(LlamaCrash, match=r"llama\.cpp crashed on '.*gguf' \(exit code -6\)"):
        check_apart(gguf)
