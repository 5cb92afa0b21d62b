"""The playground: what is said before it opens, and the page itself in a real browser with a real model.

The screenshot in docs/talk.md is made by
    RAZOR_SCREENSHOT=docs/figures/playground.png pytest tests/serve/test_playground.py -k screenshot
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from razor.models.llama_server import LOCAL
from razor.serve import playground

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BARE = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START = "import sys; from razor.cli.talk import playground; sys.exit(playground(sys.argv[1:]))"
WAIT = 120_000
"""Milliseconds that an answer may take on a busy machine."""


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
    ],
)
def test_bad_words(verb: Callable[..., Any], packed: Path, words: list[str], expected: str) -> None:
    given = {"folder": str(packed.parent), "port": "0"} | dict(word.split("=") for word in words)
    assert expected in verb("playground", *(f"{key}={value}" for key, value in given.items())).problem


class Shown:
    """`razor playground` in a process of its own."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, f"folder={folder}", "port=0", *words],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said = ""
        while "open" not in self.said and (line := self.process.stdout.readline()):
            self.said += line
        found = re.search(r"open +(http://127\.0\.0\.1:\d+)", self.said)
        assert found, self.said + str(self.process.stderr and self.process.stderr.read())
        self.url = found.group(1)

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        if self.process.poll() is None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def shown(real_gguf: Path, packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs the package gradio")
    folder = tmp_path_factory.mktemp("models")
    (folder / "SmolLM2-135M-Q4_1.gguf").symlink_to(real_gguf)
    (folder / "again.gguf").symlink_to(real_gguf)
    shutil.copytree(packed, folder / "tiny" / "packed")
    page = Shown(folder, "max_prompt=400", "max_new_tokens=512")
    yield page
    code, out, err = page.end()
    assert (code, out) == (0, "stopped\n"), err
    assert "Traceback" not in err, err


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=BARE)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any, shown: Shown) -> Iterator[Any]:
    """The page, freshly loaded; every request it makes is in `.asked`."""
    page = browser.new_page(viewport={"width": 1280, "height": 820})
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.set_default_timeout(WAIT)
    page.goto(shown.url)
    page.wait_for_selector("#message textarea")
    yield page
    page.close()


def ask(page: Any, text: str) -> None:
    """Send a message, and wait until it is part of the conversation."""
    before = len(page.query_selector_all("#talk .user"))
    page.fill("#message textarea:enabled", text)
    page.press("#message textarea", "Enter")
    page.wait_for_function(f"() => document.querySelectorAll('#talk .user').length > {before}")


def choose(page: Any, picker: str, label: str) -> None:
    page.click(f"#{picker} input")
    page.get_by_role("option", name=label).first.click()


def finished(page: Any, send: str = "send") -> None:
    page.wait_for_selector(f"#{send}:visible")


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
    page.click("#clear")
    page.wait_for_selector("#talk .bot", state="detached")


@pytest.mark.slow
def test_stop(page: Any) -> None:
    choose(page, "model", "SmolLM2")
    ask(page, "Write a very long story about the sea and all the animals that live in it.")
    page.wait_for_selector("#talk .bot")
    page.click("#stop")
    finished(page)
    assert "stopped" in page.inner_text("#figures")
    ask(page, "Say yes.")  # and on it goes
    finished(page)
    assert "stopped" not in page.inner_text("#figures")


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
def test_it_loads_quickly_and_asks_nobody_else(browser: Any, shown: Shown) -> None:
    page = browser.new_page()
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: failed.append(message.text) if message.type == "error" else None)
    page.goto(shown.url)  # once before, so that Chromium and the page's files are warm
    page.wait_for_selector("#message textarea")
    start = time.perf_counter()
    page.goto(shown.url)
    page.wait_for_selector("#message textarea")
    assert time.perf_counter() - start < 3
    page.wait_for_timeout(1000)
    elsewhere = [url for url in asked if not url.startswith((shown.url, "data:", "blob:"))]
    assert len(asked) > 5 and elsewhere == [] and failed == []
    # and it could not if it wanted: a model's answer may hold a picture's address
    blocked = page.evaluate(
        """() => new Promise(done => { const i = new Image(); i.onload = () => done('loaded');
        i.onerror = () => done('blocked'); i.src = 'https://example.org/x.png'; })"""
    )
    assert blocked == "blocked"
    with LOCAL.open(urllib.request.Request(shown.url)) as answer:
        assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    page.close()


@pytest.mark.slow
def test_on_a_phone_nothing_sticks_out(browser: Any, shown: Shown) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(shown.url)
    page.wait_for_selector("#message textarea")
    wide = "() => document.documentElement.scrollWidth"
    assert page.evaluate(wide) <= 390
    page.get_by_role("tab", name="Side by side").click()
    page.wait_for_selector("#pair-left input:visible")
    assert page.evaluate(wide) <= 390
    page.close()


@pytest.mark.slow
def test_it_ends_when_told_also_while_it_writes(browser: Any, shown: Shown) -> None:
    mine = Shown(Path(re.search(r"models of '(.*)'", shown.said).group(1)))  # type: ignore[union-attr]
    page = browser.new_page()
    page.goto(mine.url)
    page.wait_for_selector("#message textarea")
    choose(page, "model", "SmolLM2")
    ask(page, "Write a very long story.")
    page.wait_for_selector("#talk .bot")
    start = time.perf_counter()
    code, out, err = mine.end(signal.SIGTERM)
    assert (code, out) == (0, "stopped\n") and "Traceback" not in err, err
    assert time.perf_counter() - start < 20
    page.close()


@pytest.mark.slow
def test_who_finds_the_queue_full_is_told_and_keeps_the_message(browser: Any, shown: Shown) -> None:
    mine = Shown(Path(re.search(r"models of '(.*)'", shown.said).group(1)), "queue=1")  # type: ignore[union-attr]
    pages = [browser.new_page() for _ in range(3)]
    for page in pages:
        page.set_default_timeout(WAIT)
        page.goto(mine.url)
        page.wait_for_selector("#message textarea")
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
    for page in pages:
        page.close()
    assert mine.end()[0] == 0


@pytest.mark.slow
def test_screenshot(page: Any) -> None:
    target = os.environ.get("RAZOR_SCREENSHOT")
    if not target:
        pytest.skip("RAZOR_SCREENSHOT=docs/figures/playground.png writes one")
    choose(page, "model", "SmolLM2")
    page.get_by_label("number input for Temperature").fill("0")
    page.get_by_label("number input for Temperature").press("Tab")
    for text in (
        "Give me three tips for a good night's sleep.",
        "Explain in two sentences why the sky is blue.",
    ):
        ask(page, text)
        finished(page)
    page.mouse.move(5, 5)
    page.evaluate("() => document.activeElement.blur()")
    page.wait_for_timeout(800)
    page.screenshot(path=ROOT / target)
