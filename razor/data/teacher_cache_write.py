"""Run the teacher once over the training rows, and keep what it says of each token.

The body reads several rows at a time; the head is asked one row at a time and in chunks, exactly as in training,
so the [tokens, vocabulary] logits never exist. What is drawn depends on the seed and the row alone. Shards that
are there and whole are left as they are, so a run that was stopped or killed is taken up by the same command.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from razor.data.checked import save_checked
from razor.data.packing import PackedRows, collate
from razor.data.teacher_cache import SHARD_ROWS, Identity, TeacherCache, difference, read_manifest
from razor.data.teacher_cache_kinds import Arrays, Kept
from razor.distill import Targets
from razor.distill.head import Head
from razor.distill.pieces import blocks, chunk_bytes, pieces
from razor.errors import RazorError
from razor.models import record
from razor.storage import atomic_write, digest, require_space
from razor.terminal import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

CHUNK_PART = 4
"""Chunks are smaller than in training by this: drawing needs double precision."""


@dataclass(frozen=True)
class Written:
    """What caching a teacher did.

    Attributes:
        folder: of the cache.
        bytes: of all its data.
        tokens: that have targets, each token of the text that carries a loss.
        shards: number of files.
        made: tokens of these that were made now; the others were there.
        seconds: that took, without loading the teacher.
    """

    folder: Path
    bytes: int
    tokens: int
    shards: int
    made: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the quotients of interest."""
        return {
            "folder": str(self.folder),
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "shards": self.shards,
            "tokens_made": self.made,
            "seconds": self.seconds,
            "tokens_per_second": self.made / max(self.seconds, 1e-9),
        }


def write_cache(
    folder: Path,
    rows: PackedRows,
    identity: Identity,
    kept: Kept,
    load: Callable[[], PreTrainedModel],
    rows_per_batch: int = 8,
    shard_rows: int = SHARD_ROWS,
) -> Written:
    """Make the cache of `rows` in `folder`, or what is missing of it.

    Args:
        folder: its place.
        rows: what will be trained on.
        identity: see `identity_of`.
        kept: what to keep.
        load: the teacher, on its device; called only if a shard is to be made.
        rows_per_batch: rows that the teacher reads at once.
        shard_rows: rows of a shard.

    Raises:
        RazorError: the folder holds something else, or the disk has too little room.
    """
    if rows_per_batch < 1:
        raise RazorError(f"rows_per_batch={rows_per_batch} must be at least 1.")
    cache = _prepare(folder, rows, identity, shard_rows)
    numbers, made, seconds = _to_make(cache), 0, 0.0
    if numbers:
        model = load()
        vocabulary = len(_head_weight(model))
        kept.check(vocabulary)
        part = len(numbers) / cache.shards
        require_space(folder, int(part * rows.targets * kept.most_bytes(vocabulary)), "this cache", "out=...")
        started = time.perf_counter()
        there = cache.shards - len(numbers)
        with progress_bar("teacher speaks", len(rows), "row", min(there * shard_rows, len(rows))) as bar:
            for number in numbers:
                indices = range(number * shard_rows, min((number + 1) * shard_rows, len(rows)))
                made += _write_shard(cache, number, indices, rows, kept, model, rows_per_batch, bar)
                seconds = time.perf_counter() - started
                bar.set_postfix({"tok/s": f"{made / seconds:.0f}"}, refresh=False)
    return Written(folder, made=made, seconds=seconds, **cache.check())


def _prepare(folder: Path, rows: PackedRows, identity: Identity, shard_rows: int) -> TeacherCache:
    if (folder / "manifest.json").is_file():
        if differs := difference(read_manifest(folder)["identity"], identity):
            raise RazorError(
                f"'{folder}' holds other targets: they differ in {'; '.join(differs)}. Give another out=... or "
                "remove it."
            )
        return TeacherCache(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RazorError(f"out='{folder}' is there and is no cache of a teacher: give another place.")
    manifest = {"identity": identity, "rows": len(rows), "shard_rows": shard_rows}
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest | {"check": digest(manifest)}, indent=1) + "\n")
    return TeacherCache(folder)


def _to_make(cache: TeacherCache) -> list[int]:
    """Shards that are missing or damaged; the latter are said in a line each."""
    numbers = []
    for number in range(cache.shards):
        try:
            whole = cache.note(number) is not None
        except RazorError as error:
            logger.warning("%s It is made again.", error)
            whole = False
        if not whole:
            numbers.append(number)
    return numbers


def _write_shard(
    cache: TeacherCache,
    number: int,
    indices: range,
    rows: PackedRows,
    kept: Kept,
    model: PreTrainedModel,
    rows_per_batch: int,
    bar: Any,
) -> int:
    """Make shard `number`; returns its tokens."""
    packed: list[Arrays] = []
    for start in range(0, len(indices), rows_per_batch):
        some = indices[start : start + rows_per_batch]
        packed += [_packed(t, kept, len(_head_weight(model))) for t in say(model, rows, some, kept)]
        bar.update(len(some))
    counts = [(len(arrays["entropy"]), len(arrays["ids"])) for arrays in packed]
    tensors = {name: np.concatenate([arrays[name] for arrays in packed]) for name in packed[0]}
    tensors["offsets"] = np.cumsum([(0, 0), *counts], axis=0, dtype=np.int64)
    tokens = len(tensors["entropy"])
    save_checked(cache.path(number), tensors, tokens=tokens)
    return tokens


@torch.no_grad()
def say(model: PreTrainedModel, rows: PackedRows, indices: range, kept: Kept) -> list[Targets]:
    """What the teacher says of some rows, on the CPU.

    Args:
        model: the teacher, where it is to run.
        rows: all rows.
        indices: of those that it reads, at once.
        kept: what to keep.
    """
    batch = collate([rows[index] for index in indices]).to(model.device)
    trace, said = record(model, batch), []
    for place, index in enumerate(indices):
        valid = batch.valid[place]
        head = Head(trace.hidden[place][valid], trace.head_weight, trace.head_bias)
        said.append(_row(head, batch.labels[place][valid], kept, kept.chance(index, int(valid.sum()))))
    return said


def _row(head: Head, labels: torch.Tensor, kept: Kept, chance: torch.Tensor | None) -> Targets:
    parts = []
    for part in pieces(
        len(labels), head.row_bytes, chunk_bytes(labels.device.type, head.weight.element_size()) // CHUNK_PART
    ):
        product = head.product(part)
        lost = head.beyond(product, part)
        for block in blocks(product):
            where = slice(part.start + block.start, part.start + block.stop)
            logits = head.logits(product[block], None if lost is None else lost[block])
            own = None if chance is None else chance[where]
            parts.append(kept.targets(torch.log_softmax(logits, -1), labels[where], own))
    return Targets.cat(parts)


def _packed(targets: Targets, kept: Kept, vocabulary: int) -> Arrays:
    exact = {n: getattr(targets, n).float().numpy() for n in ("entropy", "label_probability")}
    return kept.pack(targets, vocabulary) | exact


def _head_weight(model: PreTrainedModel) -> torch.Tensor:
    head: Any = model.get_output_embeddings()
    return head.weight
