"""The playground: what is said before it opens, and the page itself in a real browser with a real model.

The screenshots in docs/talk.md are made by
    RAZOR_SCREENSHOTS=docs/figures pytest tests/serve/test_playground.py -k screenshot
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from razor.serve import playground
from tests.serve.browser import Pictures, ask, choose, finished, opened, picture, shoot
from tests.serve.processes import ROOT, Shown


def test_without_gradio(verb: Callable[..., Any], packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground.importlib.util, "find_spec", lambda name: None)
    problem = verb("playground", f"folder={packed.parent}").problem
    assert "pip install 'razor-qad[playground]'" in problem


needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs the package gradio"
)


@needs_gradio
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["folder=nowhere"], "folder='nowhere' holds no model to talk to"),
        (["port=-1"], "port='-1'"),
        (["queue=0"], "queue='0' must be a whole number"),
        (["max_prompt=none"], "max_prompt='none'"),
        (["context=0"], "context='0' must be a whole number"),
        (["kv=q2"], "kv='q2'. Choices: f16, q8_0"),
        (["threads=x"], "threads='x'"),
        (["folder=2024"], "folder='2024' holds no model"),
        (["folder=null"], "folder=null is empty: give the folder"),
        (["host=null"], "host=null is empty: give an address"),
    ],
)
def test_bad_words(verb: Callable[..., Any], packed: Path, words: list[str], expected: str) -> None:
    given = {"folder": str(packed.parent), "port": "0"} | dict(word.split("=") for word in words)
    assert expected in verb("playground", *(f"{key}={value}" for key, value in given.items())).problem


@pytest.fixture(scope="module")
def shown(real_gguf: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs the package gradio")
    folder = tmp_path_factory.mktemp("models")
    (folder / "SmolLM2-135M-Q4_1.gguf").symlink_to(real_gguf)
    (folder / "again.gguf").symlink_to(real_gguf)
    shutil.copytree(packed, folder / "tiny" / "packed")
    with Shown(folder, "max_prompt=400", "max_new_tokens=512") as page:
        yield page
        code, out, err = page.end(signal.SIGINT)
    assert (code, out) == (0, "stopped\n"), err
    assert "Traceback" not in err, err


@pytest.fixture
def page(browser: Any, shown: Shown) -> Iterator[Any]:
    """The page, freshly loaded."""
    with opened(browser, shown.url) as page:
        yield page


@pytest.mark.slow
def test_a_message_is_answered_piece_by_piece_with_figures(page: Any) -> None:
    choose(page, "model", "SmolLM2")
    page.evaluate(
        """() => { window.seen = new Set();
        new MutationObserver(() => { const b = document.querySelectorAll('#talk .bot');
          if (b.length) window.seen.add(b[b.length - 1].innerText.trim()); })
        .observe(document.querySelector('#talk'), {subtree: true, childList: true, characterData: true}); }"""
    )
    ask(page, "Name three colours.")
    finished(page)
    answer = page.inner_text("#talk .bot").strip()
    seen = {text for text in page.evaluate("() => [...window.seen]") if text}
    assert len(seen) > 3 and any(answer.startswith(text) and text != answer for text in seen)
    figures = page.inner_text("#figures")
    for words in ("tokens/s", "to first token", "model 96.6 MB", "process", "llama.cpp"):
        assert words in " ".join(figures.split())
    assert page.input_value("#message textarea") == ""
    ask(page, "And another one.")
    finished(page)
    assert len(page.query_selector_all("#talk .user")) == 2
    assert not page.query_selector(
        "#talk .top-panel:visible"
    )  # Gradio's own bin, which knows no conversation
    page.click("#clear")
    page.wait_for_selector("#talk .bot", state="detached")


@pytest.mark.slow
def test_too_long_a_message_is_refused_and_left_where_it_is(page: Any) -> None:
    text = "x" * 401
    page.fill("#message textarea", text)
    page.press("#message textarea", "Enter")
    page.wait_for_selector("text=The message has 401 characters; 400 are allowed")
    assert page.input_value("#message textarea") == text and not page.query_selector_all("#talk .user")
    assert page.is_visible("#send")


@pytest.mark.slow
def test_side_by_side(page: Any) -> None:
    page.get_by_role("tab", name="Side by side").click()
    page.wait_for_selector("#pair-left input:visible")
    choose(page, "pair-left", "SmolLM2")
    choose(page, "pair-right", "tiny/packed")
    page.fill("#pair-message textarea", "What is the capital of Germany? Answer with one word.")
    page.click("#pair-send")
    page.wait_for_selector("#pair-stop:visible")
    finished(page, "pair-send")
    assert "Berlin" in page.inner_text("#pair-left-text")
    assert "llama.cpp" in page.inner_text("#pair-left-figures")
    assert "Transformers" in page.inner_text("#pair-right-figures")
    assert "tokens/s" in page.inner_text("#pair-right-figures")


@pytest.mark.slow
def test_it_asks_nobody_else(browser: Any, shown: Shown) -> None:
    with browser.new_page() as page:
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
        page.goto(shown.url)
        page.wait_for_selector("#message textarea")
        page.wait_for_timeout(1000)
        elsewhere = [url for url in asked if not url.startswith((shown.url, "data:", "blob:"))]
        assert len(asked) > 5 and elsewhere == [] and failed == []


@pytest.mark.slow
def test_it_could_not_ask_anybody_else(browser: Any, shown: Shown) -> None:
    """A model's answer may hold a picture's address."""
    with Pictures() as server, browser.new_page() as page:
        page.goto(f"{server.url}/page")
        assert picture(page, f"{server.url}/there.png") == "loaded"  # a page without a policy shows it
        page.goto(shown.url)
        page.wait_for_selector("#message textarea")
        assert picture(page, f"{server.url}/here.png") == "blocked"
        assert "/there.png" in server.asked and "/here.png" not in server.asked


@pytest.mark.slow
def test_on_a_phone_nothing_sticks_out(browser: Any, shown: Shown) -> None:
    with opened(browser, shown.url, 390, 844) as page:
        wide = "() => document.documentElement.scrollWidth"
        assert page.evaluate(wide) <= 390
        page.get_by_role("tab", name="Side by side").click()
        page.wait_for_selector("#pair-left input:visible")
        assert page.evaluate(wide) <= 390


@pytest.mark.slow
def test_it_ends_when_told_also_while_it_writes(browser: Any, shown: Shown) -> None:
    with Shown(shown.folder) as mine, opened(browser, mine.url) as page:
        choose(page, "model", "SmolLM2")
        ask(page, "Write a very long story.")
        page.wait_for_selector("#talk .bot")
        code, out, err = mine.end(signal.SIGTERM)
        assert (code, out) == (0, "stopped\n") and "Traceback" not in err, err


@pytest.mark.slow
def test_who_finds_the_queue_full_is_told_and_keeps_the_message(browser: Any, shown: Shown) -> None:
    with ExitStack() as stack:
        mine = stack.enter_context(Shown(shown.folder, "queue=1"))
        pages = [stack.enter_context(opened(browser, mine.url)) for _ in range(3)]
        for page in pages:
            choose(page, "model", "SmolLM2")
        first, second, third = pages
        ask(first, "Write a very long story about the sea.")
        first.wait_for_selector("#talk .bot")
        ask(second, "Say yes.")
        second.wait_for_selector("#figures :text('waiting for its turn')")
        second.wait_for_timeout(500)
        third.fill("#message textarea", "And me?")
        third.press("#message textarea", "Enter")
        third.wait_for_selector("text=This application is currently busy")
        assert third.input_value("#message textarea") == "And me?"
        second.click("#stop")  # before its turn has come
        first.click("#stop")
        finished(second)
        assert "stopped" in second.inner_text("#figures")
        # it got no answer: it is no part of the conversation, and back where it was written
        assert second.input_value("#message textarea") == "Say yes." and not second.query_selector(
            "#talk .user"
        )
        assert mine.end()[0] == 0


@pytest.fixture(scope="module")
def models(real_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the screenshots: the real model, and what plain rounding to 4 bits makes of it, exported by Razor."""
    from razor import cli

    folder, work = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("work")
    (folder / "SmolLM2-135M-Q4_1.gguf").symlink_to(real_gguf)
    assert cli.main(["quantize", "model=smollm2_135m", "quant=w4", f"out={work / 'packed'}"]) == 0
    assert cli.main(["export", f"run={work / 'packed'}", "export=[gguf]", f"out={work}"]) == 0
    (file,) = work.glob("gguf/*.gguf")
    (folder / "rounded-to-W4.gguf").symlink_to(file)
    return folder


@pytest.mark.slow
def test_screenshots(browser: Any, request: pytest.FixtureRequest) -> None:
    target = os.environ.get("RAZOR_SCREENSHOTS")
    if not target:
        pytest.skip("RAZOR_SCREENSHOTS=docs/figures writes them")
    models = request.getfixturevalue("models")
    with Shown(models) as mine, opened(browser, mine.url) as page:
        choose(page, "model", "SmolLM2-135M-Q4_1")
        page.get_by_label("number input for Temperature").fill("0")
        page.get_by_label("number input for Temperature").press("Tab")
        for text in (
            "Give me three tips for a good night's sleep.",
            "Explain in two sentences why the sky is blue.",
        ):
            ask(page, text)
            finished(page)
        shoot(page, ROOT / target / "playground.png")
        page.get_by_role("tab", name="Side by side").click()
        page.wait_for_selector("#pair-left input:visible")
        choose(page, "pair-left", "SmolLM2-135M-Q4_1")
        choose(page, "pair-right", "rounded-to-W4")
        page.fill("#pair-message textarea", "What is water made of?")
        page.click("#pair-send")
        page.wait_for_selector("#pair-stop:visible")
        finished(page, "pair-send")
        page.set_viewport_size({"width": 1280, "height": 920})
        shoot(page, ROOT / target / "side_by_side.png")
