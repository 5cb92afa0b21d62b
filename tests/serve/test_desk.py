"""What happens behind the playground's page, with engines that only note what is done to them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from razor.errors import RazorError
from razor.serve import desk as module
from razor.serve.answer import Settings, conversation
from razor.serve.desk import Desk
from razor.serve.engine import Writing
from razor.serve.found import Found
from razor.serve.question import Limits, Question
from tests.serve.scripted import Scripted, endless, in_turn, saying

ASKED = [{"role": "user", "content": "Hello"}]


class Shelf:
    """Opens models that write by a script, and knows which are open."""

    def __init__(self) -> None:
        self.script: Callable[[Writing], str] = saying("x", "y")
        self.made: list[Scripted] = []

    def load(self, found: Found) -> Scripted:
        self.made.append(Scripted(self.script, found.name))
        return self.made[-1]

    @property
    def open(self) -> list[str]:
        return [engine.name for engine in self.made if not engine.freed]


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def desk(tmp_path: Path, shelf: Shelf) -> Desk:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    return Desk(tmp_path, Limits(max_prompt=10, max_new_tokens=256), shelf.load)


def test_two_models_are_open_and_the_oldest_makes_room(desk: Desk, shelf: Shelf) -> None:
    first = desk.engine("a.gguf")
    desk.engine("b.gguf")
    assert desk.engine("a.gguf") is first and shelf.open == ["a.gguf", "b.gguf"]
    desk.engine("c.gguf")  # b was not used for longest
    assert shelf.open == ["a.gguf", "c.gguf"]
    desk.close()
    assert shelf.open == []


def test_the_folder_is_looked_at_again(desk: Desk, shelf: Shelf) -> None:
    (desk.folder / "d.gguf").write_bytes(b"GGUF")
    assert desk.engine("d.gguf").name == "d.gguf"
    desk.engine("c.gguf")
    (desk.folder / "c.gguf").unlink()
    with pytest.raises(RazorError, match=r"'c.gguf' is not in .* any more"):
        desk.engine("c.gguf")
    assert shelf.open == ["d.gguf"]  # nobody can ask the other one again
    with pytest.raises(RazorError, match="is not in"):
        desk.engine("../elsewhere.gguf")


def test_a_model_that_was_written_again_is_opened_again(desk: Desk, shelf: Shelf) -> None:
    file = desk.folder / "a.gguf"
    before = desk.engine("a.gguf")
    assert desk.engine("a.gguf") is before
    new = desk.folder / "new"
    new.write_bytes(b"GGUF")  # of the same size, put in its place as an export is
    os.utime(new, ns=(1, file.stat().st_mtime_ns))
    new.replace(file)
    assert desk.engine("a.gguf") is not before and before.freed == 1 and shelf.open == ["a.gguf"]
    packed = desk.folder / "packed"
    packed.mkdir()
    (packed / "razor.json").write_text("{}")
    (packed / "model.safetensors").write_bytes(b"1")
    before = desk.engine("packed")
    assert desk.engine("packed") is before
    (packed / "tokenizer.json").write_text("{}")
    assert desk.engine("packed") is not before


@pytest.mark.parametrize(
    ("error", "told"),
    [(PermissionError(13, "Permission denied"), "Permission denied"), (MemoryError(), "MemoryError")],
)
def test_what_cannot_be_loaded_is_told_in_a_line(
    desk: Desk, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def load(found: Found) -> Scripted:
        raise error

    with (
        monkeypatch.context() as patch,
        pytest.raises(RazorError, match=f"'a.gguf' cannot be loaded: .*{told}"),
    ):
        patch.setattr(desk, "_load", load)
        desk.engine("a.gguf")
    assert desk.engine("a.gguf").name == "a.gguf" and shelf.open == ["a.gguf"]


def test_nothing_to_talk_to(tmp_path: Path, shelf: Shelf) -> None:
    with pytest.raises(RazorError, match="holds no model to talk to"):
        Desk(tmp_path / "runs", Limits(), shelf.load)


def question(message: str = "hi", system: str = "", tokens: int = 256, models: int = 1) -> Question:
    return Question(("a.gguf", "b.gguf")[:models], message, system, Settings(max_new_tokens=tokens))


def test_questions_over_their_limits(desk: Desk) -> None:
    desk.begin("me", question("x" * 10, "y" * 10))
    for message, system, tokens, expected in (
        ("x" * 11, "", 1, "The message has 11 characters; 10 are allowed"),
        ("x", "y" * 11, 1, "The system prompt has 11 characters"),
        ("x", "", 257, "At most 256 new tokens"),
        (" \n", "", 1, "nothing to answer"),
    ):
        with pytest.raises(RazorError, match=expected):
            desk.begin("you", question(message, system, tokens))
    with pytest.raises(RazorError, match="There is no question to answer"):
        desk.take("you")


def test_a_question_is_answered_as_it_was_asked_and_once(desk: Desk, shelf: Shelf) -> None:
    asked = question("hi", "Be brief.", 7)
    asked.before = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    desk.begin("me", asked)
    assert desk.take("me") is asked
    with pytest.raises(RazorError, match="no question"):
        desk.take("me")
    *_, (engine, last) = desk.answer(asked, "a.gguf")
    assert engine is shelf.made[0] and last.text == "xy" and asked.answered
    ((found, settings),) = shelf.made[0].asked
    assert [one["content"] for one in found] == ["Be brief.", "1", "2", "hi"]
    assert settings.max_new_tokens == 7
    assert desk.end("me") is asked and desk.end("me") is None


def test_who_asks_again_ends_what_was_asked_before(desk: Desk) -> None:
    first, second = question(), question()
    desk.begin("me", first)
    desk.begin("me", second)
    assert first.stop.is_set() and not second.stop.is_set() and desk.take("me") is second


def test_questions_that_were_left_behind_make_room(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many may ask and never come for an answer; who is being answered is not who goes."""
    monkeypatch.setattr(module, "KEPT", 3)
    asked = {name: question() for name in "abcde"}
    for name in "abc":
        desk.begin(name, asked[name])
    assert desk.take("a") is asked["a"]
    desk.begin("d", asked["d"])
    desk.begin("e", asked["e"])
    assert [name for name, one in asked.items() if one.stop.is_set()] == ["b", "c"]
    with pytest.raises(RazorError, match="no question"):
        desk.take("b")
    for name in "de":
        assert desk.take(name) is asked[name]
    desk.begin("f", question())  # all are being answered: the first one goes
    assert asked["a"].stop.is_set() and not asked["d"].stop.is_set()


def test_a_question_without_a_word_of_an_answer_has_none(desk: Desk, shelf: Shelf) -> None:
    shelf.script = saying("", "")
    asked = question()
    *_, (_, last) = desk.answer(asked, "a.gguf")
    assert last.tokens == 2 and not asked.answered


@pytest.mark.parametrize("key", ["max_prompt", "max_new_tokens", "queue"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "many"])
def test_limits_that_are_none(key: str, value: object) -> None:
    with pytest.raises(RazorError, match=f"{key}='{value}'"):
        Limits(**{key: value})  # type: ignore[arg-type]


def test_a_visitor_stops_their_own_answer_also_before_it_began(desk: Desk, shelf: Shelf) -> None:
    shelf.script = endless()
    mine, yours = question(), question()
    desk.begin("me", mine)
    desk.begin("you", yours)
    desk.stop("me")
    ((engine, only),) = desk.answer(desk.take("me"), "a.gguf")
    assert (engine, only.ended, shelf.open) == (None, "stopped", [])
    growing = desk.answer(desk.take("you"), "a.gguf")
    assert next(growing)[0] is None and shelf.open == []  # about to be loaded
    assert next(growing)[0] is shelf.made[0]
    assert next(growing)[1].ended == ""
    desk.stop("you")
    assert list(growing)[-1][1].ended == "stopped"
    desk.end("you")
    desk.stop("nobody")


def test_stop_is_for_both_models(desk: Desk, shelf: Shelf) -> None:
    """The second is not even loaded."""
    shelf.script = endless()
    both = question(models=2)
    desk.begin("me", both)
    for _, answer in desk.answer(desk.take("me"), "a.gguf"):
        if answer.tokens == 2:
            desk.stop("me")
    assert [(engine, one.ended) for engine, one in desk.answer(both, "b.gguf")] == [(None, "stopped")]
    assert shelf.open == ["a.gguf"]


def test_stop_while_a_model_is_being_loaded(desk: Desk, shelf: Shelf) -> None:
    asked = question()
    growing = desk.answer(asked, "a.gguf")
    next(growing)
    asked.stop.set()
    assert list(growing)[-1][1].ended == "stopped" and shelf.made[0].asked == []


def test_closing_while_an_answer_is_written(desk: Desk, shelf: Shelf) -> None:
    """From another thread than the one that reads, which may not come back."""
    begun = threading.Event()
    shelf.script = in_turn([endless(begun)])
    asked, found = question(), []
    desk.begin("me", asked)
    taken = desk.take("me")
    reader = threading.Thread(target=lambda: found.extend(desk.answer(taken, "a.gguf")))
    reader.start()
    assert begun.wait(60)
    desk.close()
    assert shelf.open == [] and shelf.made[0].freed_under == [0]
    reader.join(60)
    assert found[-1][1].ended == "stopped"
    with pytest.raises(RazorError, match="being closed"):
        desk.engine("a.gguf")
    with pytest.raises(RazorError, match="being closed"):
        desk.begin("me", question())


def test_conversation() -> None:
    assert conversation("  ", ASKED) == conversation(None, ASKED) == ASKED
    assert conversation("Be brief.", ASKED) == [{"role": "system", "content": "Be brief."}, *ASKED]
