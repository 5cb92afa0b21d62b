"""Objects as plain data: there and back, and one line for whatever is wrong on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from razor.errors import RazorError
from razor.spec import construct, from_spec, kinds_of, spec_of


class Shape(ABC):
    @abstractmethod
    def area(self) -> float: ...


class Round(Shape, ABC):
    pass


class Circle(Round):
    def __init__(self, radius: float, name: str | None = None) -> None:
        if radius <= 0:
            raise RazorError(f"radius {radius} must be positive.")
        self.radius, self.name = radius, name

    def area(self) -> float:
        return 3 * self.radius**2


class Dot(Round):
    def area(self) -> float:
        return 0.0


class Box(Shape):
    def __init__(
        self,
        width: int,
        unit: int | Literal["row", "tensor"] = "row",
        solid: bool = True,
        inner: Round | None = None,
        parts: Sequence[Shape] = (),
        named: Mapping[str, Shape] | None = None,
        pair: tuple[float, float] = (0.0, 1.0),
        fill: Shape | Literal["none"] = "none",
        colour: Literal["red", "green"] = "red",
        rest: Any = None,
    ) -> None:
        self.width, self.unit, self.solid, self.inner, self.parts = width, unit, solid, inner, parts
        self.named, self.pair, self.fill, self.colour, self.rest = named, pair, fill, colour, rest

    def area(self) -> float:
        return self.width


class Sound(ABC):  # noqa: B024 - a base without methods is a base
    pass


class Click(Sound):
    pass


def test_there_and_back() -> None:
    box = Box(
        3, 64, False, Circle(2.0, "c"), [Dot(), Circle(1.0)], {"a": Dot()}, (1.0, 2.0), Dot(), "green", [1]
    )
    data = spec_of(box)
    assert data == {
        "kind": "Box",
        "width": 3,
        "unit": 64,
        "solid": False,
        "inner": {"kind": "Circle", "radius": 2.0, "name": "c"},
        "parts": [{"kind": "Dot"}, {"kind": "Circle", "radius": 1.0, "name": None}],
        "named": {"a": {"kind": "Dot"}},
        "pair": [1.0, 2.0],
        "fill": {"kind": "Dot"},
        "colour": "green",
        "rest": [1],
    }
    again = from_spec(Shape, data, "shape")
    assert spec_of(again) == data and isinstance(again.inner, Circle) and again.pair == (1.0, 2.0)


def test_defaults_and_ready_objects() -> None:
    inner = Circle(1.0)
    box = from_spec(Shape, {"kind": "Box", "width": 1, "inner": inner, "fill": "none"}, "shape")
    assert box.inner is inner and box.unit == "row" and box.fill == "none"
    assert from_spec(Shape, box, "shape") is box


def test_a_whole_number_is_a_fine_number() -> None:
    radius = from_spec(Shape, {"kind": "Circle", "radius": 2}, "shape").radius
    assert radius == 2.0 and type(radius) is float


def test_kinds_are_the_concrete_subclasses() -> None:
    assert kinds_of(Shape) == {"Circle": Circle, "Dot": Dot, "Box": Box}
    assert kinds_of(Round) == {"Circle": Circle, "Dot": Dot}
    assert kinds_of(Round | Sound) == {"Circle": Circle, "Dot": Dot, "Sound": Sound, "Click": Click}


def box(**values: Any) -> dict[str, Any]:
    return {"kind": "Box", "width": 1, **values}


NUMBER = "a whole number or 'row' or 'tensor'"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"kind": "Box"}, "s.width is missing: Box needs it."),
        ({"width": 1}, "s lacks its 'kind'. Choices: Box, Circle, Dot."),
        ({"kind": "Circel"}, "s.kind='Circel' is unknown. Did you mean 'Circle'? Choices: Box, Circle, Dot."),
        ({"kind": 3}, "s.kind=3 is unknown. Choices: Box, Circle, Dot."),
        ({"kind": ["Box"]}, "s.kind=['Box'] is unknown."),
        ("Box", "s='Box' must be a mapping with its 'kind' (choices: Box, Circle, Dot), not text."),
        (None, "s=null must be a mapping with its 'kind' (choices: Box, Circle, Dot)."),
        ({"kind": "Dot", "radius": 1}, "s.radius is unknown. Dot takes no argument."),
        ({"kind": "Circle", "raduis": 1}, "s.raduis is unknown. Did you mean 'radius'? Choices: name, radius."),
        (box(width="1"), "s.width='1' must be a whole number, not text."),
        (box(width=1.0), "s.width=1.0 must be a whole number, not a number."),
        (box(width=True), "s.width=true must be a whole number."),
        (box(solid=1), "s.solid=1 must be true or false, not a whole number."),
        (box(unit="64"), f"s.unit='64' must be {NUMBER}, not text."),
        (box(unit=True), f"s.unit=true must be {NUMBER}."),
        (box(unit=None), f"s.unit=null must be {NUMBER}."),
        (box(colour="gren"), "s.colour='gren'. Did you mean 'green'? Choices: green, red."),
        (box(inner=box()), "s.inner.kind='Box' is unknown. Choices: Circle, Dot."),
        (box(inner={"kind": "Circle", "radius": "1"}), "s.inner.radius='1' must be a number, not text."),
        (box(inner={"kind": "Circle", "radius": -1}), "s.inner: radius -1.0 must be positive."),
        (box(inner=5), "s.inner=5 must be a mapping with its 'kind' (choices: Circle, Dot) or null, not"),
        (box(parts=[{"kind": "Dot"}, {"kind": "Dto"}]), "s.parts[1].kind='Dto' is unknown. Did you mean 'Dot'?"),
        (box(parts={"kind": "Dot"}), "s.parts={'kind': 'Dot'} must be a list, not a mapping."),
        (box(named={"a": {"kind": "Circle"}}), "s.named.a.radius is missing: Circle needs it."),
        (box(named={1: {"kind": "Dot"}}), "key of s.named=1 must be text, not a whole number."),
        (box(pair=[1, 2, 3]), "s.pair=[1, 2, 3] must be a list of 2."),
        (box(pair=[1, "2"]), "s.pair[1]='2' must be a number, not text."),
        (box(fill="nothing"), "s.fill='nothing' must be a mapping with its 'kind' (choices: Box, Circle, Dot) or "),
        (box(fill={"kind": "Circle", "radius": 0}), "s.fill: radius 0.0 must be positive."),
        (box(width="two\nlines"), r"s.width='two\nlines' must be a whole number, not text."),
        (box(width="x" * 500), "s.width='" + "x" * 59 + "... must be a whole number, not text."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_path(data: Any, text: str) -> None:
    with pytest.raises(RazorError) as problem:
        from_spec(Shape, data, "s")
    assert str(problem.value).startswith(text)
    assert "\n" not in str(problem.value)


def test_arguments_that_are_not_the_datas_to_give() -> None:
    assert construct(Circle, {"radius": 1.0}, "c", name="mine").name == "mine"
    with pytest.raises(RazorError, match=r"^c\.name is unknown\. Choices: radius\.$"):
        construct(Circle, {"radius": 1.0, "name": "yours"}, "c", name="mine")
    with pytest.raises(RazorError, match=r"^c=3 must be a mapping, not a whole number\.$"):
        construct(Circle, 3, "c")


def test_a_path_is_said_once() -> None:
    class Pair:
        def __init__(self, a: int) -> None:
            raise RazorError("p.a is too small.")

    with pytest.raises(RazorError, match=r"^p\.a is too small\.$"):
        construct(Pair, {"a": 1}, "p")
    with pytest.raises(RazorError, match=r"^q: p\.a is too small\.$"):
        construct(Pair, {"a": 1}, "q")
    with pytest.raises(RazorError, match=r"^a='1' must be"):
        construct(Pair, {"a": "1"}, "")


def test_two_classes_of_one_name() -> None:
    class Tone(Sound):
        pass

    def other() -> type:
        class Tone(Sound):
            pass

        return Tone

    kept = other()
    with pytest.raises(RazorError, match="Two classes are called Tone"):
        kinds_of(Sound)
    kept.__qualname__ = Tone.__qualname__  # the same class defined again, as in a notebook: the newest
    assert kinds_of(Sound)["Tone"] is kept
