"""Other formats for some modules, chosen by the pattern of their names.

A pattern is a shell pattern on the full module name (`*.down_proj`, `model.layers.0.*`) or, behind `re:`, a
regular expression that the full name must match. A pattern that matches nothing is an error: it is a
misspelt name far more often than a wish.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from razor.errors import RazorError
from razor.quant import Format

REGULAR = "re:"


@dataclass(frozen=True)
class Override:
    """What a pattern changes; "keep" leaves what was there.

    Attributes:
        weights: format of the weight.
        activations: format of a linear layer's input; None or "none" leaves the input alone.
    """

    weights: Format | Literal["keep"] = "keep"
    activations: Format | Literal["keep", "none"] | None = "keep"

    def __post_init__(self) -> None:
        if self.weights == "keep" and self.activations == "keep":
            raise RazorError("this override changes nothing; give it weights, activations or both.")


def matching(pattern: str, names: Iterable[str], where: str, others: Iterable[str] = ()) -> list[str]:
    """The names that a pattern matches, in their order.

    Args:
        pattern: see the module's docstring.
        names: full names of modules.
        where: path of the pattern, for error texts.
        others: names to look among if none of `names` matches.

    Raises:
        RazorError: no regular expression, or no name matches; the text lists the nearest names.
    """
    names = list(names)
    if pattern.startswith(REGULAR):
        try:
            expression = re.compile(pattern.removeprefix(REGULAR))
        except re.error as error:
            raise RazorError(f"{where}: '{pattern}' is no regular expression ({error}).") from error
    else:
        expression = re.compile(fnmatch.translate(pattern))
    for choice in (names, others):
        if found := [name for name in choice if expression.fullmatch(name)]:
            return found
    raise RazorError(f"{where}: '{pattern}' matches no module.{_nearest(pattern, names)}")


def _nearest(pattern: str, names: list[str]) -> str:
    """The pattern that may have been meant, and the names there are; layers repeat, so numbers are left out."""
    kinds = sorted({re.sub(r"\.\d+(?=\.|$)", ".*", name) for name in names})
    ends = {f"*.{kind.split('.', i)[i]}" for kind in kinds for i in range(1, kind.count(".") + 1)}
    near = difflib.get_close_matches(pattern, [*kinds, *sorted(ends)], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    text = f"{hint} Modules: {', '.join(kinds)}."
    return text if len(text) <= 400 else text[:400].rsplit(",", 1)[0] + ", ..."
