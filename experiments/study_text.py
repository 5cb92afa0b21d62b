"""The text that all studies of language models share.

A teacher draws its text at random from probabilities, and two kinds of processors round those differently: from the
first differing token on they write different texts. So that cells which were made on different machines have read
the same, the text as it was written once lies here, under `text/`, in the form of Razor's cache (a recipe and
numbered shards), and a study puts it there before it begins. Of another teacher, or with other settings, nothing
here fits, and the text is written as always.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from razor.data.checked import check, note_path
from razor.storage import atomic_write, cache_dir, digest

TEXTS = Path(__file__).resolve().parent / "text"


def place(texts: Path = TEXTS) -> list[Path]:
    """Copy the shards that the cache lacks to where `data=teacher_made` looks for them.

    The folder in the cache has the name of the recipe's hash, teacher's weights included, so it is read by the runs
    for which it was written and by no others. Shards that are there already stay.

    Returns:
        The folders in the cache.
    """
    placed = []
    for recipe in sorted(texts.glob("*/recipe.json")):
        folder = cache_dir() / "teacher_made" / digest(json.loads(recipe.read_text(encoding="utf-8")))
        folder.mkdir(parents=True, exist_ok=True)
        for data in sorted(recipe.parent.glob("*.safetensors")):
            if not note_path(folder / data.name).is_file():
                _shard(data, folder / data.name)
        if not (folder / recipe.name).is_file():
            _copy(recipe, folder / recipe.name)
        placed.append(folder)
    return placed


def _shard(source: Path, target: Path) -> None:
    """A shard, its note last: that it is there says that the data is whole.

    Raises:
        RazorError: the one that lies here is damaged.
    """
    check(source)
    _copy(source, target)
    _copy(note_path(source), note_path(target))


def _copy(source: Path, target: Path) -> None:
    """A file whole or not at all."""
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)
