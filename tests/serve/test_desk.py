"""What happens behind the playground's page, with engines that only note what is done to them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import ClassVar

import pytest

from razor.errors import RazorError
from razor.serve.desk import Desk, Limits, conversation
from razor.serve.engine import Engine, Settings
from razor.serve.found import Found

ASKED = [{"role": "user", "content": "Hello"}]


class Noting(Engine):
    runtime = "noting"
    open: ClassVar[list[str]] = []

    def __init__(self, found: Found) -> None:
        super().__init__(found.name, 1)
        self.open.append(found.name)

    def _write(self, messages, settings, writing):
        for token in range(1, 100):
            if writing.over:
                break
            writing.put("x", token)
            threading.Event().wait(0.002)
        return "length"

    def close(self):
        self.open.remove(self.name)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    Noting.open = []
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.gguf").write_bytes(b"GGUF")
    return Desk(tmp_path, Limits(max_prompt=10, max_new_tokens=256), Noting)


def test_two_models_are_open_and_the_oldest_makes_room(desk: Desk) -> None:
    first = desk.engine("a.gguf")
    desk.engine("b.gguf")
    assert desk.engine("a.gguf") is first and Noting.open == ["a.gguf", "b.gguf"]
    desk.engine("c.gguf")  # b was not used for longest
    assert Noting.open == ["a.gguf", "c.gguf"]
    desk.close()
    assert Noting.open == []


def test_the_folder_is_looked_at_again(desk: Desk) -> None:
    (desk.folder / "d.gguf").write_bytes(b"GGUF")
    assert desk.engine("d.gguf").name == "d.gguf"
    (desk.folder / "c.gguf").unlink()
    with pytest.raises(RazorError, match=r"'c.gguf' is not in .* any more"):
        desk.engine("c.gguf")
    with pytest.raises(RazorError, match="is not in"):
        desk.engine("../elsewhere.gguf")


def test_nothing_to_talk_to(tmp_path: Path) -> None:
    with pytest.raises(RazorError, match="holds no model to talk to"):
        Desk(tmp_path / "runs", Limits(), Noting)


def test_questions_over_their_limits(desk: Desk) -> None:
    desk.begin("me", "x" * 10, "y" * 10, Settings(max_new_tokens=256))
    for message, system, tokens, expected in (
        ("x" * 11, "", 1, "The message has 11 characters; 10 are allowed"),
        ("x", "y" * 11, 1, "The system prompt has 11 characters"),
        ("x", "", 257, "At most 256 new tokens"),
        (" \n", "", 1, "nothing to answer"),
    ):
        with pytest.raises(RazorError, match=expected):
            desk.begin("me", message, system, Settings(max_new_tokens=tokens))


@pytest.mark.parametrize("key", ["max_prompt", "max_new_tokens", "queue"])
@pytest.mark.parametrize("value", [0, -3, 2.5, True, "many"])
def test_limits_that_are_none(key: str, value: object) -> None:
    with pytest.raises(RazorError, match=f"{key}='{value}'"):
        Limits(**{key: value})  # type: ignore[arg-type]


def test_a_visitor_stops_their_own_answer_also_before_it_began(desk: Desk) -> None:
    desk.begin("me", "hi", "", Settings())
    desk.begin("you", "hi", "", Settings())
    desk.stop("me")
    (only,) = desk.answer("me", "a.gguf", ASKED, Settings())
    assert (only.ended, Noting.open) == ("stopped", [])
    growing = desk.answer("you", "a.gguf", ASKED, Settings())
    assert next(growing).ended == ""
    desk.stop("you")
    assert list(growing)[-1].ended == "stopped"
    desk.end("you")
    desk.stop("nobody")
    assert list(desk.answer("me too", "a.gguf", ASKED, Settings()))[-1].ended == "length"


def test_conversation() -> None:
    assert conversation("  ", ASKED) == ASKED
    assert conversation("Be brief.", ASKED) == [{"role": "system", "content": "Be brief."}, *ASKED]
