"""Lay out stored text in rows: held-out documents set apart, shares kept, rows filled.

Three passes over lengths and tokens, a shard at a time. The first counts, so that held-out pieces can be drawn
among all; the second finds what is left of each part when these and their copies are gone, so that shares are of
what is really trained on; the third fills rows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from razor.data.alone import alone
from razor.data.checked import Facts, check, save_checked, shard_path
from razor.data.document import Document
from razor.data.held_out import check_enough, only_copies
from razor.data.layout import Layout
from razor.data.packing import best_fit, one_each, say_cut
from razor.data.pieces import Lost, Pieces, Secrets, cut
from razor.data.token_store import TokenStore
from razor.errors import RazorError
from razor.storage import atomic_write, cache_dir, digest
from razor.terminal import progress_bar

logger = logging.getLogger(__name__)

VERSION = 1
"""To be raised when the same tokens and options come to be laid out otherwise."""

FEW = 16
"""Shards that are laid out without a bar."""

Shares = Callable[[list[int]], list[int]]
"""Tokens there are of each part -> tokens wanted of each."""


@dataclass(frozen=True)
class LaidOut:
    """Stored text in rows.

    Attributes:
        layout: rows to train on.
        held_out: documents to score on.
        used: tokens of each part in the rows.
        available: distinct ones of them.
    """

    layout: Layout
    held_out: list[Document]
    used: list[int]
    available: list[int]


@dataclass
class _Work:
    """A layout being made."""

    stores: Sequence[TokenStore]
    shares: Shares
    length: int
    held_out: int
    seed: int
    packed: bool
    lost: Lost = field(default_factory=Lost)
    chosen: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    secrets: Secrets = field(default_factory=lambda: Secrets([]))

    def shards(self) -> list[tuple[int, int]]:
        return [(part, shard) for part, store in enumerate(self.stores) for shard in range(store.shards)]

    def cut(self, part: int, shard: int, lost: Lost | None = None) -> Pieces:
        return cut(*self.stores[part].lengths(shard), self.length, lost or Lost())

    def kept(self, part: int, shard: int) -> Pieces:
        """Pieces to train on."""
        pieces = self.cut(part, shard)
        keep = np.ones(len(pieces), dtype=np.bool_)
        keep[self.chosen.get((part, shard), [])] = False
        return self.secrets.others(pieces[keep], self.stores[part].all_tokens(shard))


def lay_out(
    stores: Sequence[TokenStore],
    shares: Shares,
    about: Any,
    length: int,
    held_out: int,
    seed: int,
    packed: bool = True,
) -> LaidOut:
    """The layout of some stores, made if it is not there.

    Args:
        stores: the parts of the text.
        shares: what of each part is wanted; it is repeated if that is more than there is.
        about: JSON-able, what `shares` depends on.
        length: of a row, tokens.
        held_out: pieces to score on.
        seed: chooses them, and decides how rows are filled.
        packed: whether documents share rows.

    Raises:
        RazorError: nothing to learn, or nothing left to train on.
    """
    sums = [store.sums for store in stores]
    identity = [VERSION, sums, about, length, held_out, seed, packed]
    folder = cache_dir() / "layouts" / digest(identity)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        facts = _there(folder)
        if facts is None:
            facts = _make(folder, _Work(stores, shares, length, held_out, seed, packed))
    say_cut(facts["truncated"], facts["documents"], length, facts["useless"])
    scored = [stores[part].document(shard, start, size) for part, shard, start, size in facts["held_out"]]
    return LaidOut(Layout(folder, stores, facts["shards"]), scored, facts["used"], facts["available"])


def _there(folder: Path) -> Facts | None:
    """What is known of a layout that is whole; None if it has to be made."""
    path = folder / "layout.json"
    if not path.is_file():
        return None
    try:
        facts: Facts = json.loads(path.read_text())
        for number, note in enumerate(facts["shards"]):
            if check(shard_path(folder, number)) != note:
                raise RazorError(f"'{shard_path(folder, number)}' is damaged: it is not what it was.")
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("%s The rows are laid out again.", error)
        return None
    return facts


def _make(folder: Path, work: _Work) -> Facts:
    (folder / "layout.json").unlink(missing_ok=True)
    shards = work.shards()
    with progress_bar("lay out rows", 3 * len(shards), "shard", hidden=len(shards) < FEW) as bar:
        tokens, counts = [0] * len(work.stores), []
        for part, shard in shards:
            pieces = work.cut(part, shard, work.lost)
            counts.append(len(pieces))
            tokens[part] += pieces.tokens
            bar.update()
        places = _choose(work, shards, counts, tokens)
        available, kept = [0] * len(work.stores), []
        for part, shard in shards:
            kept.append(work.kept(part, shard).tokens)
            available[part] += kept[-1]
            bar.update()
        if not sum(available):
            raise only_copies()
        notes, used = [], [0] * len(work.stores)
        wanted = [_Wanted(*pair) for pair in zip(work.shares(available), available, strict=True)]
        for number, (part, shard) in enumerate(shards):
            notes.append(_lay_shard(folder, number, work, part, shard, wanted[part]))
            used[part] += notes[-1]["tokens"]
            bar.update()
    facts = {
        "held_out": places,
        "used": used,
        "available": available,
        "documents": work.lost.documents,
        "truncated": work.lost.truncated,
        "useless": work.lost.useless,
        "shards": notes,
    }
    with atomic_write(folder / "layout.json") as temporary:
        temporary.write_text(json.dumps(facts) + "\n")
    for store in work.stores:
        store.close()
    return facts


def _choose(
    work: _Work, shards: Sequence[tuple[int, int]], counts: Sequence[int], tokens: list[int]
) -> list[list[int]]:
    """Draw the held-out pieces of each part, and note them; gives part, shard, start and size of each."""
    check_enough(sum(counts), work.held_out)
    pieces_of = [
        sum(count for (part, _), count in zip(shards, counts, strict=True) if part == p)
        for p in range(len(tokens))
    ]
    places, documents = [], []
    for part, number in enumerate(_portions(work.shares(tokens), work.held_out)):
        check_enough(pieces_of[part], number)
        chance = np.random.default_rng([work.seed, 1, part])
        chosen = sorted(chance.choice(pieces_of[part], number, replace=False, shuffle=False).tolist())
        base = 0
        for (of, shard), count in zip(shards, counts, strict=True):
            if of != part:
                continue
            inside = [which - base for which in chosen if base <= which < base + count]
            base += count
            if not inside:
                continue
            work.chosen[part, shard] = inside
            pieces = work.cut(part, shard)[inside]
            for start, size in zip(pieces.starts.tolist(), pieces.sizes.tolist(), strict=True):
                places.append([part, shard, start, size])
                documents.append(work.stores[part].document(shard, start, size))
    work.secrets = Secrets(documents)
    return places


def _portions(weights: Sequence[float], count: int) -> list[int]:
    """`count` in whole numbers in proportion to weights, largest remainders rounded up."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * count
    whole = np.floor(exact).astype(int)
    for which in np.argsort(-(exact - whole), kind="stable")[: count - whole.sum()]:
        whole[which] += 1
    return whole.tolist()


@dataclass
class _Wanted:
    """How much of a part is wanted, and how much was taken so far of what is not taken whole."""

    tokens: int
    available: int
    seen: int = 0
    taken: int = 0

    def select(self, pieces: Pieces, chance: np.random.Generator) -> Pieces:
        """Every piece so often as is wanted of all, and once more a seeded choice that makes up the rest."""
        if not len(pieces):
            return pieces
        times, rest = divmod(self.tokens, self.available)
        self.seen += pieces.tokens
        missing = rest * self.seen / self.available - self.taken
        order = chance.permutation(len(pieces))
        middles = np.cumsum(pieces.sizes[order]) - pieces.sizes[order] / 2
        some = order[: np.searchsorted(middles, missing, side="right")]  # whichever is nearer
        self.taken += int(pieces.sizes[some].sum())
        return pieces[np.concatenate([np.tile(np.arange(len(pieces)), times), np.sort(some)])]


def _lay_shard(folder: Path, number: int, work: _Work, part: int, shard: int, wanted: _Wanted) -> Facts:
    pieces = wanted.select(work.kept(part, shard), np.random.default_rng([work.seed, 3, number]))
    sizes = pieces.sizes.tolist()
    chance = np.random.default_rng([work.seed, 2, number])
    rows = best_fit(sizes, work.length, chance) if work.packed else one_each(len(sizes))
    order = np.array([which for row in rows for which in row], dtype=np.int64)
    tensors = {
        "starts": pieces.starts[order].astype(np.uint32),
        "sizes": pieces.sizes[order].astype(np.uint32),
        "rows": np.cumsum([0, *map(len, rows)], dtype=np.uint32),
    }
    return save_checked(
        shard_path(folder, number),
        tensors,
        part=part,
        shard=shard,
        rows=len(rows),
        pieces=len(order),
        tokens=pieces.tokens,
        targets=int(pieces.targets.sum()),
    )
