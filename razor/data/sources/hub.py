"""Data sets of the Hugging Face hub: their rows, and which revision of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from razor.errors import RazorError

SECONDS = 10
"""Until the hub counts as out of reach."""


def hub_rows(
    id: str, name: str | None, split: str, streaming: bool, limit: int | None, revision: str | None = None
) -> Iterator[Mapping[str, Any]]:
    """Rows of a hub data set, in order.

    Raises:
        RazorError: no network, no such data set, configuration or split, or no permission; in one line.
    """
    import datasets  # takes a second to import, and only this kind of source needs it

    pinned = {} if revision is None else {"revision": revision}
    try:
        rows = datasets.load_dataset(id, name, split=split, streaming=streaming, **pinned)
        yield from islice(rows, limit)
    except Exception as error:  # every storage and every format behind the hub raises its own kind
        which = f"'{id}'" + (f" (name={name})" if name else "")
        raise unreadable(f"{which}, split '{split}'", error) from error


def unreadable(which: str, error: Exception) -> RazorError:
    """The one line about a data set that cannot be read."""
    lines = str(error).strip().splitlines()
    reason = " ".join(line.strip() for line in lines)[:200] or type(error).__name__
    return RazorError(
        f"The data set {which}, cannot be read from the hub: {reason} -- check the id, the network, and "
        "whether it asks for a login (hf auth login). Without a hub: data=teacher_made, local_text or local_jsonl."
    )


def check_hub(id: str, revision: str | None = None, streaming: bool = True) -> None:
    """Raise RazorError if a data set is out of reach; takes a moment, without reading any of it.

    A set that is not streamed may lie in the cache of `datasets`, which then needs no network.
    """
    if Path(id).exists():
        return
    try:
        revision_of(id, revision)
    except Exception as error:  # of the hub's client and what carries it, each its own kind
        if streaming or not _downloaded(id):
            raise unreadable(f"'{id}'", error) from error


def _downloaded(id: str) -> bool:
    """Whether something of a data set lies in the cache of `datasets`."""
    import datasets

    return (Path(datasets.config.HF_DATASETS_CACHE) / id.replace("/", "___")).is_dir()


def known_revision(id: str, revision: str | None = None) -> str | None:
    """The commit that a data set stands at; None if the hub is out of reach."""
    if Path(id).exists():
        return "local"
    try:
        return revision_of(id, revision)
    except Exception:
        return None


@lru_cache
def revision_of(id: str, revision: str | None) -> str:
    """Ask the hub for the commit of a data set; raises whatever its client raises."""
    from huggingface_hub import HfApi

    return str(HfApi().dataset_info(id, revision=revision, timeout=SECONDS).sha)
