"""Objects that describe themselves as plain data, and are built from it again.

A recipe, a plan and a packed model all have to say "int4 with groups of 64" in a file. The description of an
object is the name of its class and the arguments of its constructor:

    {"kind": "Integer", "width": 4, "group": 64}

`spec_of` reads the arguments back from the attributes of the same names. `from_spec` finds the class among the
subclasses of a base, so nothing has to be registered, and reads the constructor's own annotations as the
schema: a key it does not take, a missing one or a value of another type (text for a number, yes for 1) is an
error that names the full path, the value and what would do. A value is never converted to fit.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

from razor.errors import RazorError, did_you_mean

T = TypeVar("T")

SCALARS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    types.NoneType: "null",
}
"""What a person calls the plain types."""


def spec_of(obj: object) -> dict[str, Any]:
    """`{"kind": class name, **constructor arguments}`, nested objects described likewise."""
    names = _parameters(type(obj))
    return {"kind": type(obj).__name__} | {name: _plain(getattr(obj, name)) for name in names}


def from_spec(base: Any, data: Any, where: str) -> Any:
    """Build an object from its description; an object that is already built passes.

    Args:
        base: class, or union of classes, whose subclasses may be named as `kind`.
        data: as `spec_of` makes it; arguments with a default may be left out.
        where: path of `data`, for error texts, such as "quant.weights".

    Raises:
        RazorError: not a description, an unknown kind or argument, a missing one, a value of the wrong type, or
            what the constructor itself finds wrong; the text begins with the path.
    """
    if isinstance(data, base):
        return data
    choices = kinds_of(base)
    if not isinstance(data, Mapping):
        raise _wrong(where, data, _described(base))
    if "kind" not in data:
        raise RazorError(f"{where} lacks its 'kind'. Choices: {', '.join(sorted(choices))}.")
    kind = data["kind"]
    if not isinstance(kind, str) or kind not in choices:
        raise RazorError(
            f"{_join(where, 'kind')}={_show(kind)} is unknown.{did_you_mean(str(kind), choices)}"
        )
    return construct(choices[kind], {key: value for key, value in data.items() if key != "kind"}, where)


def construct(cls: type[T], data: Any, where: str, **given: Any) -> T:
    """Build `cls` from a mapping of its constructor's arguments, checked against its annotations.

    Args:
        cls: what to build.
        data: the arguments, by name.
        where: path of `data`, for error texts.
        given: arguments that are not the data's to give.

    Raises:
        RazorError: as `from_spec`.
    """
    if not isinstance(data, Mapping):
        raise _wrong(where, data, "a mapping")
    parameters = {name: p for name, p in _parameters(cls).items() if name not in given}
    for key in data:
        if key not in parameters:
            tail = did_you_mean(str(key), parameters) if parameters else f" {cls.__name__} takes no argument."
            raise RazorError(f"{_join(where, str(key))} is unknown.{tail}")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in data:
            raise RazorError(f"{_join(where, name)} is missing: {cls.__name__} needs it.")
    hints = typing.get_type_hints(cls.__init__)
    arguments = {key: read(hints.get(key, Any), value, _join(where, key)) for key, value in data.items()}
    with located(where):
        return cls(**arguments, **given)


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put a path in front of what a RazorError says, unless it begins with it already."""
    try:
        yield
    except RazorError as error:
        text = str(error)
        raise RazorError(text if text.startswith(where) else f"{where}: {text}") from error


def read(annotation: Any, value: Any, where: str) -> Any:
    """`value` as the annotation wants it: nested descriptions built, everything else only checked.

    Raises:
        RazorError: it is of another type.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if annotation is None or annotation in SCALARS:
        kind = annotation or types.NoneType
        if not _has_form(kind, value):
            raise _wrong(where, value, SCALARS[kind])
        return float(value) if kind is float else value
    if origin is Literal:
        if _has_form(annotation, value):
            return value
        raise RazorError(f"{where}={_show(value)}.{did_you_mean(str(value), map(str, arguments))}")
    if origin in (typing.Union, types.UnionType):
        return _read_union(arguments, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong(where, value, "a mapping")
        return {
            read(arguments[0], key, f"key of {where}"): read(arguments[1], item, _join(where, str(key)))
            for key, item in value.items()
        }
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _read_sequence(annotation, value, where)
    return from_spec(annotation, value, where)


def kinds_of(base: Any) -> dict[str, type]:
    """The concrete subclasses of a class or union of classes, itself included, by name.

    Raises:
        RazorError: two different classes of one name.
    """
    found: dict[str, type] = {}
    for cls in _families(typing.get_args(base) or (base,)):
        if inspect.isabstract(cls):
            continue
        known = found.get(cls.__name__, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise RazorError(
                f"Two classes are called {cls.__name__}: {known.__module__} and {cls.__module__}."
            )
        found[cls.__name__] = cls  # of a class defined anew, as in a notebook, the newest
    return found


def _families(classes: Iterable[type]) -> dict[type, None]:
    found: dict[type, None] = {}
    for cls in classes:
        found |= {cls: None} | _families(cls.__subclasses__())
    return found


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    return {n: p for n, p in signature.parameters.items() if p.kind in named and n != "self"}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return spec_of(value)


def _read_union(choices: Sequence[Any], value: Any, where: str) -> Any:
    """By the alternative that the value's form points to, so that an error is about that one."""
    for choice in choices:
        if _has_form(choice, value):
            return read(choice, value, where)
    classes = [choice for choice in choices if isinstance(choice, type) and choice not in SCALARS]
    if classes and isinstance(value, (Mapping, *classes)):
        return from_spec(functools.reduce(operator.or_, classes), value, where)
    raise _wrong(where, value, " or ".join(_described(choice) for choice in choices))


def _has_form(annotation: Any, value: Any) -> bool:
    """Whether a value is plain data of the sort that an annotation takes (classes aside)."""
    origin = typing.get_origin(annotation)
    if annotation is None or annotation in SCALARS:
        return type(value) is (annotation or types.NoneType) or (annotation is float and type(value) is int)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in typing.get_args(annotation))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping)
    return isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(value, (list, tuple))


def _read_sequence(annotation: Any, value: Any, where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, value, "a list")
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise RazorError(f"{where}={_show(value)} must be a list of {len(arguments)}.")
        return tuple(
            read(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True))
        )
    items = [read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    return tuple(items) if typing.get_origin(annotation) is tuple else items


def _described(annotation: Any) -> str:
    """What a person may give for an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation in SCALARS:
        return SCALARS[annotation or types.NoneType]
    if origin is Literal:
        return " or ".join(_show(choice) for choice in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "a mapping"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return "a list"
    kinds = ", ".join(sorted(kinds_of(annotation)))
    return f"a mapping with its 'kind' (choices: {kinds})"


def _wrong(where: str, value: Any, wanted: str) -> RazorError:
    kind = SCALARS.get(type(value), "a mapping" if isinstance(value, Mapping) else type(value).__name__)
    found = "" if value is None or isinstance(value, bool) else f", not {kind}"
    return RazorError(f"{where}={_show(value)} must be {wanted}{found}.")


def _show(value: Any) -> str:
    """A value as YAML and JSON write it, in one line, cut if long."""
    plain = {None: "null", True: "true", False: "false"}
    text = plain[value] if value is None or isinstance(value, bool) else " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:60] + "..."


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
