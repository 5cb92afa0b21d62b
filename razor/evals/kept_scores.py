"""Scores in the cache, each under the key of everything that shaped it."""

from __future__ import annotations

import json
from pathlib import Path

from razor.evals.scores import Scores
from razor.storage import atomic_write, cache_dir, digest


def path_of(key: str) -> Path:
    """Where the scores of a key lie, or would."""
    return cache_dir() / "scores" / f"{key}.json"


def read(path: Path) -> Scores | None:
    """Scores in a file; None if there are none, or a damaged file, which is said."""
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        if stored["check"] == digest(stored["scores"]):
            return Scores.from_dict(stored["scores"])
    except (ValueError, KeyError, TypeError):
        pass
    print(f"Damaged scores in '{path}'; they are being computed again.")
    return None


def write(path: Path, scores: Scores) -> None:
    """Keep scores, all or nothing."""
    stored = {"scores": scores.to_dict(), "check": digest(scores.to_dict())}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(stored, indent=1))
