"""What all runtimes have in common: growing answers, figures, stopping, taking turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from razor.errors import RazorError
from razor.serve.engine import Answer, Engine, Settings, Writing, resident_bytes

ASKED = [{"role": "user", "content": "Hello"}]


class Scripted(Engine):
    """Writes by a script, in the thread that engines write in."""

    runtime = "script"

    def __init__(self, script: Callable[[Writing], str]) -> None:
        super().__init__("scripted", 1000)
        self.script, self.woken = script, 0

    def _write(self, messages, settings, writing):
        return self.script(writing)

    def _interrupt(self):
        self.woken += 1

    def close(self):
        pass


def count_to(number: int, pause: float = 0.0) -> Callable[[Writing], str]:
    def script(writing: Writing) -> str:
        for token in range(1, number + 1):
            if writing.over:
                return "end"
            writing.put(f"{token} ", token)
            time.sleep(pause)
        return "length"

    return script


def test_an_answer_grows_and_its_figures_are_those_of_the_tokens() -> None:
    start = time.perf_counter()
    found = list(Scripted(count_to(5, 0.02)).answer(ASKED, Settings()))
    took = time.perf_counter() - start
    assert [one.text for one in found] == ["1 ", "1 2 ", "1 2 3 ", "1 2 3 4 ", "1 2 3 4 5 ", "1 2 3 4 5 "]
    assert [one.ended for one in found] == [""] * 5 + ["length"]
    last = found[-1]
    assert found[0].tokens_per_second is None and last.tokens == 5 and last.model_bytes == 1000
    assert last.first is not None and 0 <= last.first < took
    assert last.tokens_per_second is not None
    seconds = 4 / last.tokens_per_second  # four tokens after the first, 0.02 s each at least
    assert 0.08 <= seconds < took
    assert found[0].process_bytes == 0 and abs(last.process_bytes - resident_bytes()) < 1 << 28


def test_text_after_the_last_token_is_no_token() -> None:
    def script(writing: Writing) -> str:
        writing.put("", 1)
        writing.put("", 2)
        time.sleep(0.3)
        writing.put("late", 2)
        return "end"

    last = list(Scripted(script).answer(ASKED, Settings()))[-1]
    assert (last.text, last.tokens) == ("late", 2)
    assert last.tokens_per_second is not None and last.tokens_per_second > 4


def test_stop_ends_an_answer_and_the_event_stays_the_askers() -> None:
    stop, engine = threading.Event(), Scripted(count_to(10_000, 0.001))
    found = []
    for answer in engine.answer(ASKED, Settings(), stop):
        found.append(answer)
        if answer.tokens == 3:
            stop.set()
    assert found[-1].ended == "stopped" and 3 <= found[-1].tokens < 1000
    kept = threading.Event()
    assert list(Scripted(count_to(2)).answer(ASKED, Settings(), kept))[-1].ended == "length"
    assert not kept.is_set()  # it serves for a second model too


def test_a_writer_that_waits_is_woken() -> None:
    stop, awake = threading.Event(), threading.Event()

    def script(writing: Writing) -> str:
        awake.wait(10)
        return "end"

    engine = Scripted(script)
    engine._interrupt = awake.set  # type: ignore[method-assign]
    threading.Timer(0.1, stop.set).start()
    start = time.perf_counter()
    assert list(engine.answer(ASKED, Settings(), stop))[-1].ended == "stopped"
    assert time.perf_counter() - start < 5


def test_closing_the_iterator_stops_the_writer() -> None:
    ended = threading.Event()

    def script(writing: Writing) -> str:
        done = count_to(100_000, 0.001)(writing)
        ended.set()
        return done

    engine = Scripted(script)
    growing = engine.answer(ASKED, Settings())
    next(growing)
    growing.close()
    assert ended.is_set()
    engine.script = count_to(1)
    assert list(engine.answer(ASKED, Settings()))[-1].text == "1 "  # the next one gets its turn


def test_what_goes_wrong_is_told_to_the_one_who_asked() -> None:
    def script(writing: Writing) -> str:
        writing.put("a", 1)
        raise RazorError("too long")

    engine = Scripted(script)
    with pytest.raises(RazorError, match="too long"):
        list(engine.answer(ASKED, Settings()))
    engine.script = count_to(1)
    assert list(engine.answer(ASKED, Settings()))


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
    assert whole.figures() == (
        "12 tokens, 31.0 tokens/s, first after 0.25 s, model 96.6 MB, process 585 MB, length limit"
    )
    assert Answer(tokens=1).figures() == "1 token, model 0.0 MB"
