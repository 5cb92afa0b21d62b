"""Tables inside documents: what stands between `<!-- results: NAME -->` and `<!-- end of results -->`.

Nobody edits such a block by hand. It is made anew from results, and the text around it stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

Makers = Mapping[str, Callable[[], str]]
"""By the name of a block, what makes its text."""


def documents() -> list[Path]:
    """Where blocks may stand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(HERE.glob("*/README.md"))]


def written(text: str, makers: Makers) -> str:
    """A document with its blocks made anew.

    Raises:
        KeyError: a block has no maker.
    """
    return BLOCK.sub(lambda found: found[1] + makers[found[2]]() + found[3], text)


def write(makers: Makers) -> list[Path]:
    """Write the documents whose blocks are no longer those of the results.

    Returns:
        which these are.
    """
    changed = []
    for path in documents():
        old = path.read_text(encoding="utf-8")
        new = written(old, makers)
        if new != old:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed
