"""Waiting for a module to be imported."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
from razor.on_import import when_imported

told = []
when_imported("colorsys", lambda: told.append("after" if "colorsys" in sys.modules else "before"))
when_imported("colorsys", lambda: told.append("twice"))
import wave
assert told == [], told
import colorsys
assert told == ["after"], told
assert type(colorsys.__loader__).__name__ == type(wave.__loader__).__name__
assert colorsys.__spec__.loader is colorsys.__loader__ and colorsys.rgb_to_hsv
when_imported("colorsys", lambda: told.append("at once"))
assert told == ["after", "at once"], told
"""

LIGHT = "import razor, sys; assert not {'torch', 'transformers', 'lightning'} & set(sys.modules)"


def test_calls_once_and_leaves_no_trace() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=600)


def test_import_razor_stays_light() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True, timeout=600)
