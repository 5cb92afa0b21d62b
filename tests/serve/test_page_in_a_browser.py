"""What a visitor sees in a real browser, above all when things go wrong. Models write by a script."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from razor.serve.engine import Writing
from tests.serve.browser import ask, choose, finished, opened
from tests.serve.scripted import endless, failing, in_turn, saying
from tests.serve.scripted_page import ScriptedPage

pytest.importorskip("gradio")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shown(environment: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedPage]:
    with ScriptedPage(tmp_path_factory.mktemp("models")) as shown:
        yield shown


@pytest.fixture
def page(browser: Any, shown: ScriptedPage) -> Iterator[Any]:
    """The page, freshly loaded."""
    with opened(browser, shown.url) as page:
        yield page


def test_stop(page: Any, shown: ScriptedPage) -> None:
    shown.script = in_turn([endless(), saying("yes")])
    ask(page, "Write.")
    page.wait_for_selector("#talk .bot")
    page.click("#stop")
    finished(page)
    assert "stopped" in page.inner_text("#figures")
    ask(page, "Say yes.")  # and on it goes
    finished(page)
    assert "stopped" not in page.inner_text("#figures")
    assert len(page.query_selector_all("#talk .user")) == 2


def test_an_error_while_it_answers_gives_the_message_back(page: Any, shown: ScriptedPage) -> None:
    """As where a message is longer than the model reads."""
    shown.script = in_turn([saying("one"), failing("The conversation is too long"), saying("three")])
    ask(page, "First.")
    finished(page)
    page.fill("#message textarea:enabled", "Second.")
    page.press("#message textarea", "Enter")
    page.wait_for_selector("text=The conversation is too long")
    page.wait_for_function("() => document.querySelector('#message textarea').value === 'Second.'")
    finished(page)
    assert page.is_enabled("#clear") and not page.is_visible("#stop")
    assert len(page.query_selector_all("#talk .user")) == 1
    ask(page, "Third.")
    finished(page)
    assert len(page.query_selector_all("#talk .user")) == 2


def test_an_error_that_nobody_foresaw_does_not_lock_the_page(page: Any, shown: ScriptedPage) -> None:
    def wrong(writing: Writing) -> str:
        raise RuntimeError("probability tensor contains nan")

    shown.script = in_turn([wrong, saying("fine")])
    page.fill("#message textarea:enabled", "Hello")
    page.press("#message textarea", "Enter")
    page.wait_for_selector("text=probability tensor contains nan")
    page.wait_for_function("() => document.querySelector('#message textarea').value === 'Hello'")
    finished(page)
    ask(page, "Hello")
    finished(page)


def refuse_the_second(page: Any) -> None:
    """Let the queue be full for the next event but one, which is the one that writes."""
    seen: list[str] = []

    def join(route: Any) -> None:
        seen.append(route.request.url)
        if len(seen) == 2:
            route.fulfill(status=503, json={"detail": "Queue is full."})
        else:
            route.continue_()

    page.route("**/queue/join*", join)


def test_an_answer_that_finds_the_queue_full(page: Any, shown: ScriptedPage) -> None:
    """Others may have come between taking a question and writing its answer."""
    shown.script = saying("fine")
    refuse_the_second(page)
    page.fill("#message textarea:enabled", "Hello")
    page.press("#message textarea", "Enter")
    page.wait_for_selector("text=This application is currently busy")
    page.wait_for_function("() => document.querySelector('#message textarea').value === 'Hello'")
    finished(page)
    page.wait_for_function("() => !document.querySelector('#figures').innerText.includes('waiting')")
    assert not page.query_selector("#talk .user")
    ask(page, "Again")
    finished(page)
    assert "fine" in page.inner_text("#talk .bot")


def test_a_comparison_that_finds_the_queue_full(page: Any, shown: ScriptedPage) -> None:
    shown.script = saying("fine")
    page.get_by_role("tab", name="Side by side").click()
    page.wait_for_selector("#pair-left input:visible")
    refuse_the_second(page)
    page.fill("#pair-message textarea", "Hello")
    for _ in range(2):
        page.click("#pair-send")
        page.wait_for_selector("#pair-left-text .bot, :text('This application is currently busy')")
        finished(page, "pair-send")
    page.wait_for_selector("#pair-right-text .bot")
    assert "fine" in page.inner_text("#pair-left-text") and "fine" in page.inner_text("#pair-right-text")


def test_a_conversation_that_was_given_up_is_told(page: Any, shown: ScriptedPage) -> None:
    shown.script = saying("fine")
    ask(page, "Hello")
    finished(page)
    sessions = shown.page.app.state_holder
    sessions.session_data.clear()  # as when many others have come
    page.fill("#message textarea:enabled", "And?")
    page.press("#message textarea", "Enter")
    page.wait_for_selector("text=not known here any more")
    assert page.input_value("#message textarea") == "And?" and "Hello" in page.inner_text("#talk .user")
    page.click("#clear")
    page.wait_for_selector("#talk .user", state="detached")
    ask(page, "And?")
    finished(page)


def test_closing_while_it_writes(environment: Any, browser: Any, tmp_path: Path) -> None:
    begun = threading.Event()
    with ScriptedPage(tmp_path) as shown, opened(browser, shown.url) as page:
        shown.script = endless(begun)
        choose(page, "model", "b.gguf")
        ask(page, "Write.")
        assert begun.wait(60)
        shown.desk.close()
        finished(page)
        assert "stopped" in page.inner_text("#figures")
