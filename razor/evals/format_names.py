"""What people call a format: `int4 g64`, `ternary g256`, `1/2 int4 + 1/2 ternary g256`.

A name has what tells two formats of a table apart: its kind, its group, and whatever differs from the defaults
of its constructor. The exact description is `Format.spec()`.
"""

from __future__ import annotations

import inspect
from fractions import Fraction

from razor.quant import Affine, Float16, Format, Integer, LearnedScale, RowMix, StretchedElastic, Ternary

SHORT: dict[type[Format], tuple[str, str]] = {
    Integer: ("int", "width"),
    Affine: ("affine", "width"),
    StretchedElastic: ("elastic", "levels"),
    Ternary: ("ternary", ""),
}
"""Word and the argument that is written right behind it."""


def format_name(format: Format | None) -> str:
    """A few words; "-" for None (left alone)."""
    if format is None:
        return "-"
    group = getattr(format.high if isinstance(format, RowMix) else format, "group", None)
    where = f"g{group}" if isinstance(group, int) else f"per {group}" if group else ""
    return f"{_kind(format)} {where}".strip()


def _kind(format: Format) -> str:
    """The name without its group."""
    if isinstance(format, Float16):
        return {"bfloat16": "bf16", "float16": "fp16"}[format.dtype]
    if isinstance(format, RowMix):
        high = Fraction(format.fraction).limit_denominator(1000)
        parts = f"{high} {_kind(format.high)} + {1 - high} {_kind(format.low)}"
        return parts if format.rows == "even" else f"{parts} by {format.rows.partition(':')[0]}"
    if isinstance(format, LearnedScale):
        return " ".join(["learned", _kind(format.base), *_unusual(format, "base")])
    word, width = SHORT.get(type(format), (type(format).__name__, ""))
    return " ".join([word + (str(getattr(format, width)) if width else ""), *_unusual(format, width)])


def _unusual(format: Format, told: str) -> list[str]:
    """Arguments that differ from their defaults, but for the group and one that the name tells already."""
    words = []
    for name, parameter in inspect.signature(type(format)).parameters.items():
        value = getattr(format, name)
        if name not in (told, "group") and value != parameter.default:
            shown = format_name(value) if isinstance(value, Format) else value
            words.append(f"{name}={shown:g}" if isinstance(shown, float) else f"{name}={shown}")
    return words
