"""Questions with images and sound: rows of one question each, and what a source of them is.

A row holds one question with its answer, filled up to the longest that it comes together with, so that
micro-batches, their order, shares and resuming are those of text (`steps.py`). What processors made of images and
sound lies in memory.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from razor.data.corpus import Corpus, check_sequence_length
from razor.data.rows import Wanted
from razor.data.sources.base import DataSource
from razor.distill import IGNORE, MediaBatch
from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from razor.models import Task
    from razor.models.media_reader import MediaText


@dataclass(frozen=True)
class Question:
    """What is asked of a model, and what it should say.

    Attributes:
        text, answer: words.
        images: [height, width, 3] uint8 each.
        sounds: (numbers a second, [n] fp32 between -1 and 1) each.
    """

    text: str
    answer: str
    images: Sequence[NDArray[np.uint8]] = ()
    sounds: Sequence[tuple[int, NDArray[np.float32]]] = ()


@dataclass(frozen=True)
class MediaRows:
    """Questions to train on or to score on.

    Attributes:
        read: as a model reads them.
        pad_id: token that fills rows up.
    """

    read: Sequence[MediaText] = field(repr=False)
    pad_id: int
    bucketed: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.read)

    def batch(self, indices: Iterable[int]) -> MediaBatch:
        """Some questions together, a row each."""
        chosen = [self.read[index] for index in indices]
        length = max(len(one.tokens) for one in chosen)
        rows = [_row(one, owner, length, self.pad_id) for owner, one in enumerate(chosen)]
        columns: Any = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        names = dict.fromkeys(name for one in chosen for name in one.media)
        media = {name: _together([one.media[name] for one in chosen if name in one.media]) for name in names}
        return MediaBatch(**columns, media=media)

    def batches(self, rows_per_batch: int) -> Iterator[MediaBatch]:
        """All questions in order, a few at a time."""
        for start in range(0, len(self), rows_per_batch):
            yield self.batch(range(start, min(start + rows_per_batch, len(self))))

    def documents_in(self, index: int) -> int:
        """One question."""
        return 1

    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each question, those held free for images and sound included."""
        return np.array([len(one.tokens) for one in self.read], dtype=np.int32)

    @property
    def tokens(self) -> int:
        """All of them."""
        return int(self.lengths().sum())

    def digest(self) -> str:
        """Of tokens, answers, pixels and sound."""
        sha = hashlib.sha256(str(self.pad_id).encode())
        for one in self.read:
            for tensor in (one.tokens, one.response, one.kinds, *one.media.values()):
                sha.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


class MediaSource(DataSource):
    """Where questions with images and sound come from; a subclass says which there are.

    Args:
        seed: of the held-out choice; not the run's, so that runs with other seeds are scored alike.
    """

    task: ClassVar[Task] = "media"
    unit = "tokens"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    @abstractmethod
    def questions(self) -> Iterator[Question]:
        """All of them, in an order that is the same at every call."""

    def check_rows(self, config: PretrainedConfig, length: int, longest: int | None) -> None:
        """Rows may be as long as the model can read."""
        check_sequence_length(length, longest)

    def corpus(self, wanted: Wanted) -> Corpus:
        """Held-out questions chosen by the source's seed, the others to train on."""
        reader, pad = wanted.reader, wanted.tokenizer.pad_token_id
        read = [self._read(reader, question, wanted.sequence_length) for question in self.questions()]
        if wanted.held_out >= len(read):
            raise RazorError(
                f"data.held_out={wanted.held_out} of {len(read)} questions leaves none to train on."
            )
        order = np.random.default_rng(self.seed).permutation(len(read)).tolist()
        pad_id = 0 if pad is None else int(pad)
        scored, trained = (
            [read[i] for i in part] for part in (order[: wanted.held_out], order[wanted.held_out :])
        )
        return Corpus(train=MediaRows(trained, pad_id), held_out=MediaRows(scored, pad_id))

    @staticmethod
    def _read(reader: Any, question: Question, longest: int) -> MediaText:
        sounds = [resampled(sound, rate, reader.rate) for rate, sound in question.sounds]
        found: MediaText = reader(question.text, question.answer, question.images, sounds)
        if len(found.tokens) > longest:
            raise RazorError(
                f"A question has {len(found.tokens)} tokens with its images and sound, and data.sequence_length is "
                f"{longest}: give more, or smaller images and shorter sound."
            )
        return found


def resampled(sound: NDArray[np.float32], rate: int, wanted: int) -> NDArray[np.float32]:
    """Sound [n] of `rate` numbers a second with `wanted` of them, by a polyphase filter."""
    if rate == wanted:
        return sound
    from scipy.signal import resample_poly

    common = int(np.gcd(rate, wanted))
    return resample_poly(sound, wanted // common, rate // common).astype(np.float32)


def _row(one: MediaText, owner: int, length: int, pad_id: int) -> dict[str, Tensor]:
    tokens = len(one.tokens)
    missing = (0, length - tokens)
    labels = torch.full((tokens,), IGNORE, dtype=torch.int64)
    labels[:-1] = torch.where(one.response, one.tokens, IGNORE)[1:]
    return {
        "input_ids": F.pad(one.tokens, missing, value=pad_id),
        "labels": F.pad(labels, missing, value=IGNORE),
        "position_ids": torch.cat([torch.arange(tokens), torch.arange(length - tokens)]),
        "documents": F.pad(torch.full((tokens,), owner), missing, value=-1),
        "kinds": F.pad(one.kinds, missing),
    }


def _together(parts: Sequence[Tensor]) -> Tensor:
    """One after the other; recordings of several lengths filled up with zeros, which their mask leaves out."""
    longest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[-1])) for part in parts])
