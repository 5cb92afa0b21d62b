"""Questions on a digit and a piece of a recording."""

from __future__ import annotations

import pytest

from razor.data.sources.digits_and_sounds import DIGITS, DigitsAndSounds
from razor.errors import RazorError


def test_there_are_so_many_digits_and_no_more() -> None:
    assert sum(1 for _ in DigitsAndSounds(DIGITS, 8, seconds=0).questions()) == DIGITS
    with pytest.raises(RazorError, match=r"data.source.questions=1798, and there are 1797 digits"):
        DigitsAndSounds(DIGITS + 1, 8, seconds=0)
