"""What the teacher said of every token of the training rows, on disk, so that a student learns without it.

A folder holds numbered shards of a fixed number of rows, safetensors files that are mapped into memory and read
a row at a time. A shard is whole or not there (`checked.py`), so a kill loses the one in hand. `manifest.json`
says what it is a cache *of*: training rows, tokenizer, teacher, compute dtype, and what was kept. A run that
differs in any of these is refused, because nothing else would notice: targets of other text are just bad targets.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from razor.data.checked import check, shard_path
from razor.data.packing import PackedRows
from razor.data.teacher_cache_kinds import Kept, kept_of
from razor.distill import Targets
from razor.errors import RazorError
from razor.storage import cache_dir, digest

VERSION = 1
"""To be raised when the same settings come to keep other numbers, or in another form."""

SHARD_ROWS = 64
OPEN_SHARDS = 256
"""Shards that are mapped at a time."""

Identity = dict[str, Any]
"""What a cache is of; "rows" is None while the text is not known yet."""

SUBJECTS = {
    "rows": "the training text (its documents, data.sequence_length, data.held_out or the seed)",
    "tokenizer": "the tokenizer",
    "teacher": "the teacher",
    "compute_dtype": "trainer.compute_dtype",
    "kept": "what is kept",
    "version": "the version of the cache",
}


def identity_of(
    rows: PackedRows | None, tokenizer: Any, teacher: str, compute_dtype: str, kept: Kept
) -> Identity:
    """What a cache is of.

    Args:
        rows: what is trained on; None if not known yet.
        tokenizer: gives tokens their meaning.
        teacher: fingerprint of its weights.
        compute_dtype: what it computes in.
        kept: what is kept of its distributions.
    """
    return {
        "version": VERSION,
        "rows": None if rows is None else rows_digest(rows),
        "tokenizer": digest(sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])),
        "teacher": teacher,
        "compute_dtype": compute_dtype,
        "kept": kept.describe(),
    }


def rows_digest(rows: PackedRows) -> str:
    """Of all that the teacher reads and is asked: tokens, labels, positions, documents."""
    sha = hashlib.sha256(str((len(rows), rows.sequence_length)).encode())
    for index in range(len(rows)):
        row = rows[index]
        for tensor in (row.input_ids, row.labels, row.position_ids, row.documents):
            sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()[:16]


def caches_folder() -> Path:
    """Where caches lie that nobody gave a place."""
    return cache_dir() / "teacher_targets"


def cache_folder(identity: Identity) -> Path:
    """Where the cache of an identity lies."""
    return caches_folder() / digest(identity)


def difference(found: Mapping[str, Any], wanted: Identity) -> list[str]:
    """In what two identities differ, in words; rows that are not known yet are not compared."""
    names = [n for n in SUBJECTS if found.get(n) != wanted[n] and not (n == "rows" and wanted[n] is None)]
    texts = []
    for name in names:
        told = name in ("compute_dtype", "kept", "version")
        values = f" (there {_short(found.get(name))}, here {_short(wanted[name])})" if told else ""
        texts.append(SUBJECTS[name] + values)
    return texts


class TeacherCache:
    """The targets of each row, by its index.

    Args:
        folder: a cache; see `open_cache` and `teacher_cache_write.write_cache`.

    Raises:
        RazorError: it is none, or its manifest is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        self.identity: Identity = manifest["identity"]
        self.rows, self.shard_rows = int(manifest["rows"]), int(manifest["shard_rows"])
        self.kept = kept_of(**self.identity["kept"])
        self._open: dict[int, Any] = {}

    def __len__(self) -> int:
        return self.rows

    @property
    def shards(self) -> int:
        """Number of shards when complete."""
        return -(-self.rows // self.shard_rows)

    def path(self, shard: int) -> Path:
        """Data of a shard; see `checked.py` for the note beside it."""
        return shard_path(self.folder, shard)

    def note(self, shard: int) -> dict[str, Any] | None:
        """The checked note of a shard, or None if it was not made yet.

        Raises:
            RazorError: the shard is damaged; the text says how.
        """
        return check(self.path(shard))

    def check(self) -> dict[str, int]:
        """Read every shard once; gives bytes, tokens and shards.

        Raises:
            RazorError: a shard is missing or damaged.
        """
        totals = {"bytes": 0, "tokens": 0, "shards": self.shards}
        notes = [self.note(shard) for shard in range(self.shards)]
        if missing := [shard for shard, note in enumerate(notes) if note is None]:
            raise RazorError(
                f"'{self.folder}' is incomplete: {len(missing)} of {self.shards} shards are not there, the first "
                f"is number {missing[0]}."
            )
        for facts in notes:
            assert facts is not None
            totals["bytes"] += facts["bytes"]
            totals["tokens"] += facts["tokens"]
        return totals

    def __getitem__(self, row: int) -> Targets:
        """The targets of a row's valid tokens, in order."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        shard, place = divmod(row, self.shard_rows)
        data = self._mapped(shard)
        (token, entry), (last_token, last_entry) = data.get_slice("offsets")[place : place + 2].tolist()
        arrays = {}
        for name in data.keys():  # noqa: SIM118 - not a mapping
            if name != "offsets":
                by_entry = name in self.kept.by_entry
                start, stop = (entry, last_entry) if by_entry else (token, last_token)
                arrays[name] = data.get_slice(name)[start:stop]
        ids, values, tail = self.kept.unpack(arrays)
        entropy, label = (torch.from_numpy(arrays[n]) for n in ("entropy", "label_probability"))
        return Targets(self.kept.kind, ids, values, tail, entropy, label)

    def _mapped(self, shard: int) -> Any:
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.clear()
            self._open[shard] = safe_open(self.path(shard), framework="numpy")
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker of a loader maps its own


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder is a cache of.

    Raises:
        RazorError: it is no cache, or the manifest is damaged.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise RazorError(f"'{folder}' holds no teacher's targets (no manifest.json).")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        if manifest["check"] != digest({key: manifest[key] for key in manifest if key != "check"}):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RazorError(f"'{path}' is damaged: remove '{folder}'.") from error
    return manifest


def open_cache(identity: Identity, folder: Path | None, command: str) -> TeacherCache:
    """The complete, undamaged cache of an identity; with rows not known yet, one that may turn out to be it.

    Args:
        identity: see `identity_of`.
        folder: where it is said to lie; None looks in Razor's cache.
        command: what would make it, for error texts.

    Raises:
        RazorError: there is none, or it is of something else, incomplete or damaged; the text says in what it
            differs, where, and the command.
    """
    make = f"Make it with: {command}"
    if folder is None:
        nearest = _nearest(identity)
        if nearest is None:
            raise RazorError(f"No teacher's targets lie in '{caches_folder()}'. {make}")
        folder, differs = nearest
    else:
        try:
            differs = difference(read_manifest(folder)["identity"], identity)
        except RazorError as error:
            raise RazorError(f"{error} {make}") from error
    if differs:
        raise RazorError(
            f"The targets in '{folder}' are not of this run: they differ in {'; '.join(differs)}. {make}"
        )
    cache = TeacherCache(folder)
    if identity["rows"] is not None:
        try:
            cache.check()
        except RazorError as error:
            raise RazorError(f"{error} What is whole is kept, the rest is made by: {command}") from error
    return cache


def _nearest(identity: Identity) -> tuple[Path, list[str]] | None:
    """The cache with the fewest differences, and these."""
    found = []
    for path in sorted(caches_folder().glob("*/manifest.json")):
        try:
            found.append((path.parent, difference(read_manifest(path.parent)["identity"], identity)))
        except RazorError:
            if path.parent == cache_folder(identity):  # no other's damage is of interest
                raise
    return min(found, key=lambda pair: len(pair[1]), default=None)


def _short(value: Any) -> str:
    return " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
