"""The one exception a user is meant to read.

Everything a person can get wrong -- a name, a number, a file -- ends in a `RazorError` whose text is a
single line: the value, the choices, and where to look. The commands print that line and exit with code 2;
any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RazorError(ValueError):
    """Bad input, told in one line (value, choices, where to look)."""


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """A short tail for an error text: the nearest choice if there is one, then all of them."""
    known = sorted(choices)
    near = difflib.get_close_matches(value, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{hint} Choices: {', '.join(known)}."
