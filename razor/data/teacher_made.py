"""Training text that the teacher writes itself, made once and kept.

The best text to distil a model on is text the model finds likely, and the model can write it: chats
from its chat template, or plain text if it is a base model (`turns.py` says how, `sampling.py` how
fast). No data set, no network, no licence.

**Cache.** Text is written in batches and each batch is saved at once as a shard under
`<cache>/teacher_made/<hash>`. The hash covers all that shapes the text: the teacher's weights, the
template's tokens, the settings, the seed and the version of this recipe. The number of tokens asked
for is not part of it: shard k is the same however many follow, so asking for more continues where
the last run stopped, and so does a run that was interrupted. With everything there the teacher is
not even loaded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from razor.data.document import Document
from razor.data.sampling import Sampling, Text, write
from razor.data.shards import load_shard, save_shard
from razor.data.sources.base import Teacher, TextSource
from razor.data.turns import Turns, turns_of
from razor.errors import RazorError
from razor.storage import atomic_write, cache_dir, digest
from razor.terminal import progress_bar

logger = logging.getLogger(__name__)

RECIPE_VERSION = 1
"""To be raised when the same settings come to write other text: older text is then not used."""

FRUITLESS = 3
"""Shards without one new document before giving up."""


class TeacherMade(TextSource):
    """Chats or texts written by the teacher.

    Args:
        tokens: how many generated tokens are wanted, user turns included; the batch that reaches
            the number is used whole.
        max_user_tokens, max_answer_tokens: limits of the two turns; a base model's text uses the
            second.
        batch_size: texts written at once; also the texts in a shard.
        temperature, top_p, top_k: how tokens are drawn (see `Sampling`).
        seed: of the text. Apart from the run's seed, so that runs with other seeds share the text.

    Raises:
        RazorError: a number out of its range.
    """

    def __init__(
        self,
        tokens: int = 45_000,
        max_user_tokens: int = 40,
        max_answer_tokens: int = 200,
        batch_size: int = 64,
        temperature: float = 1.0,
        top_p: float = 0.95,
        top_k: int = 256,
        seed: int = 0,
    ) -> None:
        counts = {
            "tokens": tokens,
            "max_user_tokens": max_user_tokens,
            "max_answer_tokens": max_answer_tokens,
            "batch_size": batch_size,
            "top_k": top_k,
        }
        for name, value in counts.items():
            if value < 1:
                raise RazorError(f"data.source.{name}={value} must be at least 1.")
        if not temperature > 0:
            raise RazorError(
                f"data.source.temperature={temperature} must be above 0: without chance all texts "
                f"are the same."
            )
        if not 0 < top_p <= 1:
            raise RazorError(f"data.source.top_p={top_p} must be above 0 and at most 1.")
        self.tokens = tokens
        self.max_user_tokens = max_user_tokens
        self.max_answer_tokens = max_answer_tokens
        self.batch_size = batch_size
        self.sampling = Sampling(temperature, top_p, top_k)
        self.seed = seed

    def folder(self, tokenizer: Any, teacher: Teacher) -> Path:
        """Where the shards of this text lie."""
        return cache_dir() / "teacher_made" / digest(self._recipe(self._turns(tokenizer), teacher))

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """Texts until `tokens` generated ones are there, from the cache or written now.

        Raises:
            RazorError: no teacher, one too short for the text, or one that writes nothing usable.
        """
        if teacher is None:
            raise RazorError(
                "data=teacher_made needs a teacher to write the text, and this command has none."
            )
        turns = self._turns(tokenizer)
        folder = self.folder(tokenizer, teacher)
        documents: list[Document] = []
        seen: set[bytes] = set()
        total = fruitless = 0
        with progress_bar("teacher writes", self.tokens, "tok") as bar:
            for shard, generated in self._shards(folder, tokenizer, teacher, turns, bar):
                before = total
                for document, count in zip(shard, generated, strict=True):
                    if document.key() not in seen:
                        seen.add(document.key())
                        documents.append(document)
                        total += count
                bar.n = min(total, self.tokens)
                bar.refresh()
                fruitless = 0 if total > before else fruitless + 1
                if total >= self.tokens:
                    return documents
                if fruitless == FRUITLESS:
                    raise RazorError(
                        f"The teacher writes only empty, repeated or circling text ({total} of "
                        f"{self.tokens} tokens so "
                        "far): raise data.source.temperature, or take another data source."
                    )
        raise AssertionError("the shards never end")

    def _shards(
        self, folder: Path, tokenizer: Any, teacher: Teacher, turns: Turns, bar: Any
    ) -> Iterator[tuple[list[Document], list[int]]]:
        """Shard after shard, without end; the first to be written loads the teacher."""
        model: Any = None
        number = 0
        while True:
            shard = load_shard(folder, number)
            if shard is None:
                if model is None:
                    model = teacher.load()
                    _check_room(model, turns)
                    self._describe(folder, turns, teacher)
                shard = self._write_shard(model, tokenizer, turns, number, bar)
                save_shard(folder, number, *shard)
            yield shard
            number += 1

    def _write_shard(
        self, model: Any, tokenizer: Any, turns: Turns, number: int, bar: Any
    ) -> tuple[list[Document], list[int]]:
        generator = torch.Generator(model.device)
        generator.manual_seed(int(digest([self.seed, number]), 16) % 2**63)
        texts = turns.texts(self.batch_size, generator)
        write(
            model,
            texts,
            self.sampling,
            generator,
            len(tokenizer),
            turns.longest,
            lambda used: bar.update(used),
        )
        useful = [text for text in texts if not _degenerate(text, tokenizer)]
        return [_document(text) for text in useful], [_generated(text) for text in useful]

    def _turns(self, tokenizer: Any) -> Turns:
        return turns_of(tokenizer, self.max_user_tokens, self.max_answer_tokens)

    def _recipe(self, turns: Turns, teacher: Teacher) -> dict[str, Any]:
        return {
            "recipe": RECIPE_VERSION,
            "teacher": teacher.fingerprint,
            "turns": turns.describe(),
            "batch_size": self.batch_size,
            "sampling": [self.sampling.temperature, self.sampling.top_p, self.sampling.top_k],
            "seed": self.seed,
        }

    def _describe(self, folder: Path, turns: Turns, teacher: Teacher) -> None:
        """Leave a note in the folder, for people: what the hash stands for."""
        with atomic_write(folder / "recipe.json") as temporary:
            temporary.write_text(json.dumps(self._recipe(turns, teacher)) + "\n")


def _check_room(model: Any, turns: Turns) -> None:
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and turns.longest > room:
        raise RazorError(
            f"The teacher reads at most {room} tokens, but a text may get {turns.longest} "
            f"(template included): lower "
            "data.source.max_answer_tokens or data.source.max_user_tokens."
        )


def _document(text: Text) -> Document:
    first, last = text.spans[-1]
    response = np.zeros(len(text.tokens), dtype=np.bool_)
    response[first:last] = True
    return Document(np.array(text.tokens, dtype=np.int32), response)


def _generated(text: Text) -> int:
    return sum(last - first for first, last in text.spans)


def _degenerate(text: Text, tokenizer: Any) -> bool:
    """True if a turn is blank, or circles: half of its runs of four tokens repeat earlier ones."""
    for first, last in text.spans:
        tokens = text.tokens[first:last]
        if not tokenizer.decode(tokens, skip_special_tokens=True).strip():
            return True
        runs = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
        if len(runs) >= 16 and 2 * len(set(runs)) < len(runs):
            return True
    return False
