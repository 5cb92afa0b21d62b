"""From a real model to an answer over HTTP, through every door on the way: quantize, export, chat, serve."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from razor import cli
from razor.models.llama_server import LOCAL
from razor.serve.answer import Settings
from razor.serve.opening import open_engine
from tests.conftest import in_process
from tests.serve.processes import Served

pytestmark = pytest.mark.slow

ASKED = [{"role": "user", "content": "What is the capital of Germany?"}]


@pytest.fixture(scope="module")
def run(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2-135M rounded to 4 bits in packed/, and its GGUF in exports/."""
    folder = tmp_path_factory.mktemp("run")
    for words in (
        ["quantize", "model=smollm2_135m", "quant=w4", f"out={folder / 'packed'}"],
        ["export", f"run={folder}", "export=[gguf]"],
    ):
        code, _, err = in_process(lambda words=words: cli.main(words))
        assert code == 0, err
    return folder


@pytest.mark.parametrize("runtime", ["llama_cpp", "transformers"])
def test_an_engine_answers(run: Path, runtime: str) -> None:
    engine = open_engine(run, runtime, context=512)
    try:
        last = list(engine.answer(ASKED, Settings(max_new_tokens=12, temperature=0)))[-1]
    finally:
        engine.close()
    assert engine.runtime == runtime and "Berlin" in last.text
    assert 0 < last.model_bytes < 90_000_000  # 269 MB in 16 bits


def test_the_terminal_answers(run: Path, verb: Callable[..., Any]) -> None:
    words = (f"prompt={ASKED[0]['content']}", "temperature=0", "max_new_tokens=12", "json=true")
    found = json.loads(verb("chat", f"run={run}", *words).out)
    assert "Berlin" in found["text"] and found["engine"] == "llama_cpp"


def test_the_server_answers(run: Path) -> None:
    body = json.dumps({"messages": ASKED, "max_tokens": 12, "temperature": 0}).encode()
    with Served(run) as server:
        request = urllib.request.Request(
            f"{server.url}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        with LOCAL.open(request) as answer:
            assert "Berlin" in json.load(answer)["choices"][0]["message"]["content"]
        assert server.end() == (0, "stopped\n", "")
