"""llama.cpp through ctypes: what it gives, and that whatever is wrong is an error in a line."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from razor.errors import RazorError
from razor.models import llama_library, llama_runtime
from razor.models.llama_library import FOLDER, find_library, load_library
from razor.models.llama_process import LlamaProcess
from razor.models.llama_runtime import LlamaRuntime

pytest.importorskip("xllamacpp")


def test_a_text_gives_a_row_for_each_token(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [(5 * i) % 250 for i in range(90)]
    with LlamaRuntime(gguf, context=128, kv="f32", flash=False) as llama:
        whole = llama.logits(tokens)
        assert whole.shape == (90, 272) and whole.dtype == np.float32 and np.isfinite(whole).all()
        assert np.array_equal(llama.logits(tokens), whole)  # nothing is left of the text before
        assert np.abs(llama.logits(tokens[:40]) - whole[:40]).max() < 1e-3  # causal
    monkeypatch.setattr(llama_runtime, "LONGEST_BATCH", 16)
    with LlamaRuntime(gguf, context=128, kv="f32", flash=False) as llama:
        assert llama.batch == 16 and np.abs(llama.logits(tokens) - whole).max() < 1e-3


def test_reading_on_token_by_token(gguf: Path) -> None:
    tokens = [(5 * i) % 250 for i in range(60)]
    with LlamaRuntime(gguf, context=64, kv="f32", flash=False) as llama:
        whole = llama.logits(tokens)
        assert np.abs(llama.read(tokens[:50]) - whole[49]).max() < 1e-3
        for place in range(50, 60):
            assert np.abs(llama.read(tokens[place : place + 1], place) - whole[place]).max() < 1e-3
        with pytest.raises(RazorError, match="opened for 1 to 64"):
            llama.read(tokens, 10)


def test_the_cache_is_what_was_asked_for(gguf: Path) -> None:
    found = {}
    for kv in ("f32", "f16", "q8_0"):
        with LlamaRuntime(gguf, kv=kv) as llama:
            found[kv] = llama.logits(list(range(50)))
    gap = {kv: float(np.abs(found[kv] - found["f32"]).max()) for kv in found}
    assert gap["q8_0"] > 1e-3 and gap["f16"] < gap["q8_0"] < 1


def test_tokens_and_marks(gguf: Path) -> None:
    with LlamaRuntime(gguf) as llama:
        assert len(llama.tokenize("abc")) == 3 and llama.tokenize("") == []
        assert len(llama.tokenize("é" * 3000)) == 6000
        assert llama.tokenize("a<|im_end|>")[1:] == [258]


def test_a_process_of_its_own_gives_the_same(gguf: Path) -> None:
    tokens = list(range(30))
    with (
        LlamaProcess(gguf, kv="f32", flash=False) as apart,
        LlamaRuntime(gguf, kv="f32", flash=False) as here,
    ):
        assert np.array_equal(apart.logits(tokens), here.logits(tokens))
        assert apart.tokenize("Hi <|im_end|>") == here.tokenize("Hi <|im_end|>")
        assert apart.vocabulary == 272 and apart.version == llama_library.version()
        with pytest.raises(RazorError, match="Token 9999 for a vocabulary of 272"):
            apart.logits([1, 9999])
        assert len(apart.logits([1])) == 1  # it goes on


@pytest.mark.parametrize(
    ("options", "tokens", "text"),
    [
        ({"kv": "q4_9"}, [1], "f32, f16, q8_0"),
        ({"context": 8}, list(range(9)), "9 tokens .* 1 to 8"),
        ({}, [], "0 tokens"),
        ({}, [1, -1], "Token"),
    ],
)
def test_bad_questions(gguf: Path, options: dict[str, Any], tokens: list[int], text: str) -> None:
    with pytest.raises(RazorError, match=text), LlamaRuntime(gguf, **options) as llama:
        llama.logits(tokens)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model " * 100)
    with pytest.raises(RazorError, match=r"does not open .*text\.gguf.*magic"):
        LlamaRuntime(tmp_path / "text.gguf")
    with pytest.raises(RazorError, match=r"does not open .*gone\.gguf"):
        LlamaProcess(tmp_path / "gone.gguf")


def test_a_crash_is_an_error_here(gguf: Path) -> None:
    llama = LlamaProcess(gguf)
    llama._child.send_signal(signal.SIGABRT)
    with pytest.raises(RazorError, match=r"llama\.cpp crashed .*exit code -6"):
        llama.logits([1, 2])
    llama.close()


def test_without_llama_cpp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llama_library.importlib.util, "find_spec", lambda _: None)
    monkeypatch.delenv(FOLDER, raising=False)
    with pytest.raises(RazorError, match=r"pip install 'razor-qad\[llama-cpp\]'"):
        find_library()
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with pytest.raises(RazorError, match="libllama and libggml"):
        find_library()


def test_a_folder_of_libraries(gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As other builds have it: three files; and one that cannot be loaded."""
    monkeypatch.delenv(FOLDER, raising=False)
    library = find_library()
    for name in ("libggml-base.so.0", "libggml.so", "libllama.v9.so", "libllama-common.so"):
        (tmp_path / name).symlink_to(library)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert find_library() == tmp_path
    with LlamaProcess(gguf) as llama:
        assert llama.logits([1, 2, 3]).shape == (3, 272)
    (tmp_path / "libllama.v9.so").unlink()
    (tmp_path / "libllama.v9.so").write_text("nothing")
    with pytest.raises(RazorError, match="cannot be used"):
        LlamaProcess(gguf)


class Other:
    """A llama.cpp whose defaults have other numbers in them."""

    def __init__(self, **words: int) -> None:
        self.words = words

    def llama_context_default_params(self) -> Any:
        params = load_library().llama_context_default_params()
        for place, word in self.words.items():
            params.words[int(place[1:])] = word
        return params


@pytest.mark.parametrize(
    "words", [{"w0": 1024}, {"w26": 2}, {"w30": 1, "w31": 1}, {"w25": 7}, {"w26": 0, "w27": 0}]
)
def test_another_layout_of_parameters_is_refused(words: dict[str, int]) -> None:
    with pytest.raises(RazorError, match="another interface"):
        llama_runtime._context_params(Other(**words), 128, 128, 0, None)  # type: ignore[arg-type]
    params = llama_runtime._context_params(Other(), 128, 64, 8, False)  # type: ignore[arg-type]
    assert isinstance(params, ctypes.Structure) and list(params.words[:3]) == [128, 64, 64]


def test_the_child_starts_without_torch(gguf: Path) -> None:
    """Or every proof would wait for it."""
    code = """
import runpy, sys
sys.path.insert(0, sys.argv[2])
runpy.run_path(sys.argv[1], run_name="other")["_without_its_package"]()
import razor.models.llama_runtime
print("torch" in sys.modules)
"""
    here = Path(llama_runtime.__file__).with_name("llama_process.py")
    root = here.parent.parent.parent
    done = subprocess.run([sys.executable, "-c", code, str(here), str(root)], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
    assert os.path.isfile(gguf)
