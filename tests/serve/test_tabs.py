"""The tabs of the playground behind their components: what is asked, kept, shown and given back. No browser."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from razor.serve.answer import Answer, said
from razor.serve.desk import Desk
from razor.serve.engine import Writing
from razor.serve.found import Found
from razor.serve.question import Limits
from tests.serve.scripted import Scripted, endless, failing, in_turn, saying, silent

gr = pytest.importorskip("gradio")

from razor.serve import parts  # noqa: E402 - they need Gradio
from razor.serve.chat_tab import ChatTab  # noqa: E402
from razor.serve.pair_tab import PairTab  # noqa: E402

ME: Any = SimpleNamespace(session_hash="me")
NAMES = ["a.gguf", "b.gguf"]


def values(tokens: Any = 64, system: str = "", temperature: Any = 0.7) -> tuple[Any, ...]:
    """What the controls of the settings hold."""
    return (system, tokens, temperature, 0.9, 0, False)


class Room:
    """A desk with two models that write by a script."""

    def __init__(self, folder: Path) -> None:
        for name in NAMES:
            (folder / name).write_bytes(b"GGUF")
        self.script: Callable[[Writing], str] = saying("fine")
        self.made: list[Scripted] = []
        self.desk = Desk(folder, Limits(max_prompt=20, max_new_tokens=100), self.load)

    def load(self, found: Found) -> Scripted:
        self.made.append(Scripted(self.script, found.name))
        return self.made[-1]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with gr.Blocks():
        made = Room(tmp_path)
        yield made
        made.desk.close()


def ask(tab: ChatTab, message: str, before: list[dict[str, str]]) -> tuple[list[dict[str, str]], list[Any]]:
    """A question from begin to over: the conversation afterwards, and what `over` shows."""
    tab.begin(ME, "a.gguf", message, before, before, *values())
    kept = before
    try:
        for step in tab.write(ME):
            kept = step[0]
    except gr.Error:
        pass
    return kept, tab.over(ME, kept)


def test_a_conversation(room: Room) -> None:
    tab = ChatTab(room.desk, NAMES)
    keys = tab.begin(ME, "a.gguf", "Hello", [], [], *values(system="Be brief."))
    *_, box, shown, note = keys
    assert box.value == "" and shown == [said("user", "Hello")] and "waiting" in note
    steps = list(tab.write(ME))
    assert [kept for kept, *_ in steps[:2]] == [[], []]  # nothing is part of it before it is answered
    assert "loading a.gguf" in steps[0][2] and "reading" in steps[1][2] and steps[1][1] == shown
    whole = [said("user", "Hello"), said("assistant", "fine")]
    assert steps[-1][:2] == (whole, whole) and "<b>1</b> token" in steps[-1][2]
    over = tab.over(ME, whole)
    assert over[-2] == whole and over[-3].value == "" and over[-3].interactive
    room.made[0].script = saying("yes")
    kept, _ = ask(tab, "And?", whole)
    assert [one["content"] for one in kept] == ["Hello", "fine", "And?", "yes"]
    assert room.made[0].asked[0][0] == [said("system", "Be brief."), said("user", "Hello")]
    assert room.made[0].asked[1][0] == kept[:3]


@pytest.mark.parametrize("script", [failing("broken"), saying(), saying("", "")])
def test_a_question_without_an_answer_is_dropped_and_given_back(room: Room, script: Any) -> None:
    room.script = in_turn([saying("fine"), script, saying("yes")])
    tab = ChatTab(room.desk, NAMES)
    first, _ = ask(tab, "one", [])
    second, over = ask(tab, "two", first)
    assert second == first and over[-2] == first and over[-3].value == "two"
    third, _ = ask(tab, "three", second)
    assert [one["content"] for one in third] == ["one", "fine", "three", "yes"]
    assert room.made[0].asked[-1][0] == third[:3]


def test_stop_before_the_first_token(room: Room) -> None:
    begun = threading.Event()
    room.script = silent(begun)
    tab = ChatTab(room.desk, NAMES)
    tab.begin(ME, "a.gguf", "Hello", [], [], *values())
    found: list[Any] = []
    writing = threading.Thread(target=lambda: found.extend(tab.write(ME)))
    writing.start()
    assert begun.wait(60)
    tab.stop(ME)
    writing.join(60)
    kept, shown, note = found[-1]
    assert kept == [] and shown == [said("user", "Hello")] and "stopped" in note
    over = tab.over(ME, kept)
    assert over[-2] == [] and over[-3].value == "Hello"


def test_an_answer_that_breaks_off_keeps_what_there_was(room: Room) -> None:
    def script(writing: Writing) -> str:
        writing.put("half", 1)
        return failing("gone")(writing)

    room.script = script
    kept, over = ask(ChatTab(room.desk, NAMES), "Hello", [])
    assert kept == [said("user", "Hello"), said("assistant", "half")] and over[-3].value == ""


def test_a_question_whose_turn_never_came_is_given_back(room: Room) -> None:
    """As where the queue has refused to let it be written."""
    tab, pair = ChatTab(room.desk, NAMES), PairTab(room.desk, NAMES)
    tab.begin(ME, "a.gguf", "Hello", [], [], *values())
    *_, box, shown, figures = tab.over(ME, [])
    assert box.value == "Hello" and shown == [] and "waiting" not in figures
    pair.begin(ME, *NAMES, "Hello", *values())
    assert "waiting" not in pair.over(ME)[-1]
    for again in (tab, pair):
        with pytest.raises(gr.Error, match="There is no question to answer"):
            again.taken(ME)


def test_a_conversation_that_is_shown_and_not_known_is_told(room: Room) -> None:
    """Only so many are kept, and none over a new start; the page would begin anew without a word."""
    tab = ChatTab(room.desk, NAMES)
    shown = [said("user", "Hello"), said("assistant", "fine")]
    with pytest.raises(gr.Error, match="not known here any more"):
        tab.begin(ME, "a.gguf", "And?", shown, [], *values())
    assert room.desk.end(tab.visitor(ME)) is None
    tab.begin(ME, "a.gguf", "And?", [], [], *values())  # after Clear


def test_limits_hold_whatever_the_page_lets_through(room: Room) -> None:
    """As from another client than the page: the sliders and boxes are its own."""
    tab, pair = ChatTab(room.desk, NAMES), PairTab(room.desk, NAMES)
    for message, given, expected in (
        ("x" * 21, values(), "The message has 21 characters; 20 are allowed"),
        ("x", values(system="y" * 21), "The system prompt has 21"),
        ("x", values(tokens=101), "At most 100 new tokens"),
        ("x", values(tokens=None), "A setting is empty"),
        ("x", values(tokens=float("inf")), "A setting is empty"),
        ("x", values(temperature=float("nan")), "A setting is empty"),
        ("x", values(temperature=-1), "temperature="),
        (" ", values(), "nothing to answer"),
    ):
        with pytest.raises(gr.Error, match=expected):
            tab.begin(ME, "a.gguf", message, [], [], *given)
        with pytest.raises(gr.Error, match=expected):
            pair.begin(ME, *NAMES, message, *given)
    for write in (lambda: tab.write(ME), lambda: pair.write(ME)):
        with pytest.raises(gr.Error, match="There is no question to answer"):
            list(write())
    assert room.made == []


def test_a_question_is_written_once(room: Room) -> None:
    tab = ChatTab(room.desk, NAMES)
    tab.begin(ME, "a.gguf", "Hello", [], [], *values(tokens=9))
    list(tab.write(ME))
    with pytest.raises(gr.Error, match="There is no question to answer"):
        list(tab.write(ME))
    ((_, settings),) = room.made[0].asked
    assert settings.max_new_tokens == 9


def test_side_by_side(room: Room) -> None:
    room.script = saying("fine")
    pair = PairTab(room.desk, NAMES)
    pair.begin(ME, *NAMES, "Hello", *values())
    steps = [list(step) for step in pair.write(ME)]
    assert [engine.name for engine in room.made] == NAMES
    assert steps[-1][0] == steps[-1][2] == [said("assistant", "fine")]
    assert all("<b>1</b> token" in steps[-1][place] for place in (1, 3))
    pair.over(ME)
    assert room.desk.end(pair.visitor(ME)) is None


def test_stop_is_for_both_sides(room: Room) -> None:
    room.script = endless()
    pair = PairTab(room.desk, NAMES)
    pair.begin(ME, *NAMES, "Hello", *values())
    for step in pair.write(ME):
        if step[0]:
            pair.stop(ME)
    assert [engine.name for engine in room.made] == ["a.gguf"]  # the other was not even loaded
    assert step[0] and step[2] == [] and all("stopped" in step[place] for place in (1, 3))


def test_one_side_fails_and_the_other_answers(room: Room) -> None:
    room.script = in_turn([failing("<broken>"), saying("fine")])
    pair = PairTab(room.desk, NAMES)
    pair.begin(ME, *NAMES, "Hello", *values())
    step = list(pair.write(ME))[-1]
    assert step[0] == [] and "&lt;broken&gt;" in step[1] and step[2] == [said("assistant", "fine")]


def test_who_leaves_the_page_wants_no_more(room: Room) -> None:
    room.script = endless()
    tab = ChatTab(room.desk, NAMES)
    tab.begin(ME, "a.gguf", "Hello", [], [], *values())
    for _, _, note in tab.write(ME):
        if "<b>1</b> token" in note:
            tab.leave(ME)
    assert "stopped" in note


def test_figures_are_those_of_the_terminal_with_bold_numbers() -> None:
    whole = Answer("x", 12, 0.25, 31.04, 96_600_000, 585_000_000, "length")
    shown = parts.figures(whole, "llama_cpp")
    plain = shown.replace("<b>", "").replace("</b>", "")
    assert all(f"<span class=chip>{words}</span>" in plain for words in (*whole.figures(), "llama.cpp"))
    for bold in ("<b>31.0</b> tokens/s", "<b>0.25 s</b> to first token", "model <b>96.6 MB</b>"):
        assert bold in shown
