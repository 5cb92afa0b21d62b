"""What all runtimes have in common: growing answers, figures, stopping, taking turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from razor.errors import RazorError
from razor.serve.answer import Answer, Settings
from razor.serve.engine import Writing, resident_bytes
from tests.serve.scripted import Scripted, endless, failing, in_turn, saying

ASKED = [{"role": "user", "content": "Hello"}]


def timed(*moments: tuple[str, int, float]) -> Callable[[Writing], str]:
    """A script of pieces at moments of a clock of its own: text, tokens so far, seconds."""

    def script(writing: Writing) -> str:
        for moment in moments:
            writing.pieces.put(moment)
        return "length"

    return script


def whole(engine: Scripted) -> Answer:
    """The last state of an answer."""
    return list(engine.answer(ASKED, Settings()))[-1]


def test_an_answer_grows_and_its_figures_are_those_of_the_tokens() -> None:
    begun = time.perf_counter()
    script = timed(*((f"{n} ", n, begun + 10 + 0.02 * n) for n in range(1, 6)))
    found = list(Scripted(script).answer(ASKED, Settings()))
    assert [one.text for one in found] == ["1 ", "1 2 ", "1 2 3 ", "1 2 3 4 ", "1 2 3 4 5 ", "1 2 3 4 5 "]
    assert [one.ended for one in found] == [""] * 5 + ["length"]
    last = found[-1]
    assert found[0].tokens_per_second is None and last.tokens == 5 and last.model_bytes == 1000
    assert last.first is not None and last.first <= 10.02  # from the question, which came after `begun`
    assert last.tokens_per_second == pytest.approx(1 / 0.02)  # four tokens after the first
    assert found[0].process_bytes == 0 and abs(last.process_bytes - resident_bytes()) < 1 << 28


def test_text_after_the_last_token_is_no_token() -> None:
    last = whole(Scripted(timed(("", 1, 100.0), ("", 2, 100.1), ("late", 2, 107.0))))
    assert (last.text, last.tokens) == ("late", 2)
    assert last.tokens_per_second == pytest.approx(10)


def test_stop_ends_an_answer_and_the_event_stays_the_askers() -> None:
    stop, engine = threading.Event(), Scripted(endless())
    found = []
    for answer in engine.answer(ASKED, Settings(), stop):
        found.append(answer)
        if answer.tokens == 3:
            stop.set()
    assert found[-1].ended == "stopped" and found[-1].tokens >= 3
    kept = threading.Event()
    assert list(Scripted(saying("a")).answer(ASKED, Settings(), kept))[-1].ended == "end"
    assert not kept.is_set()  # it serves for a second model too


def test_a_writer_that_waits_is_woken() -> None:
    stop, awake, woken = threading.Event(), threading.Event(), []

    def script(writing: Writing) -> str:
        stop.set()
        woken.append(awake.wait(60))
        return "end"

    engine = Scripted(script)
    engine._interrupt = awake.set  # type: ignore[method-assign]
    assert list(engine.answer(ASKED, Settings(), stop))[-1].ended == "stopped"
    assert woken == [True]


def test_closing_the_iterator_stops_the_writer() -> None:
    engine = Scripted(endless())
    growing = engine.answer(ASKED, Settings())
    next(growing)
    growing.close()
    assert engine.writers == 0
    engine.script = saying("1")
    assert whole(engine).text == "1"  # the next one gets its turn


def test_what_goes_wrong_is_told_to_the_one_who_asked() -> None:
    engine = Scripted(failing("too long"))
    with pytest.raises(RazorError, match="too long"):
        whole(engine)
    engine.script = saying("1")
    assert whole(engine).text == "1"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("probability tensor\n contains nan"),
            "'scripted' cannot answer: probability tensor contains",
        ),
        (MemoryError(), "'scripted' cannot answer: MemoryError"),
    ],
)
def test_what_a_runtime_throws_is_told_in_a_line(error: Exception, told: str) -> None:
    def script(writing: Writing) -> str:
        raise error

    engine = Scripted(script)
    with pytest.raises(RazorError, match=told) as caught:
        whole(engine)
    assert caught.value.__cause__ is error
    engine.script = saying("1")
    assert whole(engine).text == "1"


def test_closing_waits_for_the_writer_but_not_for_the_reader() -> None:
    """Who reads an answer may never come back for more; memory is given back when nobody writes into it."""
    engine = Scripted(endless())
    growing = engine.answer(ASKED, Settings())
    next(growing)  # and there it stays
    engine.close()
    assert engine.freed_under == [0]
    engine.close()
    assert engine.freed == 1
    assert list(growing)[-1].ended == "stopped"
    with pytest.raises(RazorError, match="'scripted' was closed"):
        whole(engine)


def test_closing_tells_those_who_wait_for_their_turn() -> None:
    engine, told = Scripted(endless()), []

    def wait() -> None:
        try:
            whole(engine)
        except RazorError as error:
            told.append(str(error))

    growing = engine.answer(ASKED, Settings())
    next(growing)
    waiting, waits = threading.Thread(target=wait, daemon=True), threading.Event()
    check = engine._check_open

    def looks() -> None:
        check()
        if threading.current_thread() is waiting:
            waits.set()  # it was open: from here on it waits

    engine._check_open = looks  # type: ignore[method-assign]
    waiting.start()
    assert waits.wait(60)
    engine.close()
    waiting.join(60)
    assert told == ["'scripted' was closed."] and len(engine.asked) == 1


def test_who_left_without_waiting_leaves_no_second_writer() -> None:
    """A second Ctrl-C ends the wait for the writer that the first one told to stop."""
    gone, nudged, together = threading.Event(), threading.Event(), []

    def stubborn(writing: Writing) -> str:
        writing.put("x", 1)
        gone.wait(60)
        return "end"

    def interrupted() -> None:
        raise KeyboardInterrupt

    def polite(writing: Writing) -> str:
        together.append(engine.writers)
        return "end"

    engine = Scripted(in_turn([stubborn, polite]))
    growing = engine.answer(ASKED, Settings())
    next(growing)
    engine._interrupt = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        growing.close()
    assert engine.writers == 1  # it writes on
    engine._interrupt = nudged.set  # type: ignore[method-assign]
    found: list[Answer] = []
    following = threading.Thread(target=lambda: found.extend(engine.answer(ASKED, Settings())))
    following.start()
    assert nudged.wait(60) and len(engine.asked) == 1
    gone.set()
    following.join(60)
    assert together == [1] and found[-1].ended == "end"


def test_stop_is_heard_while_others_are_answered() -> None:
    engine, stop = Scripted(endless()), threading.Event()
    growing = engine.answer(ASKED, Settings())
    next(growing)
    threading.Timer(0.1, stop.set).start()
    (only,) = engine.answer(ASKED, Settings(), stop)
    assert only.ended == "stopped" and len(engine.asked) == 1
    growing.close()


def test_one_answer_at_a_time() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def script(writing: Writing) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return "end"

    engine = Scripted(script)
    threads = [threading.Thread(target=lambda: list(engine.answer(ASKED, Settings()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("max_new_tokens", True),
        ("temperature", -1),
        ("temperature", "hot"),
        ("temperature", 0.001),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("seed", -1),
        ("seed", 2**31),
    ],
)
def test_numbers_out_of_range(key: str, value: object) -> None:
    with pytest.raises(RazorError, match=f"{key}='{value}' must be"):
        replace(Settings(), **{key: value})  # type: ignore[arg-type]


def test_figures_for_people() -> None:
    whole = Answer("x", 12, 0.25, 31.04, 96_600_000, 585_000_000, "length")
    assert whole.figures() == [
        "31.0 tokens/s",
        "0.25 s to first token",
        "12 tokens",
        "model 96.6 MB",
        "process 585 MB",
        "length limit",
    ]
    assert Answer(tokens=1, ended="end").figures() == ["1 token"]
