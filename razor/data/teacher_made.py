"""Training text that the teacher writes itself, made once and kept.

The best text to distil a model on is text the model finds likely, and the model can write it: chats
from its chat template, or plain text if it is a base model (`turns.py` says how, `sampling.py` how
fast). No data set, no network, no licence. `mix.py` adds other kinds of text, `filters.py` says
what is left out, `llama_cpp.py` writes from a GGUF.

**Cache.** Text is written in batches and each batch is saved at once as a shard under
`<cache>/teacher_made/<hash>`. The hash covers all that shapes the text: the teacher's weights, the
template's tokens, the settings, the seed and the version of this recipe. The number of tokens asked
for is not part of it: shard k is the same however many follow, so asking for more continues where
the last run stopped, and so does a run that was interrupted. Nor are the filters that act when
shards are read. With everything there the teacher is not even loaded.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from razor.data.asked import Asked
from razor.data.document import Document
from razor.data.filters import UNUSABLE, Filters, usable
from razor.data.llama_cpp import LlamaCpp
from razor.data.mix import Mix
from razor.data.sampling import Sampling, Text, write
from razor.data.shards import load_shard, save_shard
from razor.data.sources.base import Teacher, TextSource
from razor.data.temperature import Ramp, read_temperature
from razor.data.turns import Turns
from razor.errors import RazorError, did_you_mean
from razor.storage import atomic_write, cache_dir, digest, file_digest
from razor.terminal import progress_bar

logger = logging.getLogger(__name__)

RECIPE_VERSION = 1
"""To be raised when the same settings come to write other text: older text is then not used."""

FRUITLESS = 3
"""Shards without one new document before giving up."""

ENGINES = ("transformers", "llama_cpp")


class TeacherMade(TextSource):
    """Chats or texts written by the teacher.

    Args:
        tokens: how many generated tokens are wanted, user turns included; the batch that reaches
            the number is used whole.
        max_user_tokens, max_answer_tokens: limits of the two turns; a base model's text uses the
            second.
        batch_size: texts written at once; also the texts in a shard.
        temperature, top_p, top_k: how tokens are drawn (see `Sampling`); the temperature may change
            over a turn: {"from": 1.2, "to": 0.8, "tokens": 32} (see `Ramp`).
        seed: of the text. Apart from the run's seed, so that runs with other seeds share the text.
        mix: shares of the kinds `chat`, `text` and `file`; None: chats, or texts of a base model.
        prompts: file of prompts, for `file`.
        passages: file of text whose paragraphs `text` goes on from; None: it begins by itself.
        max_prompt_tokens: most tokens of a prompt, template included.
        prefix_tokens: tokens of a paragraph that are given.
        min_tokens: fewest tokens of a response worth keeping.
        near_duplicates: likeness, above 0 and at most 1, from which a text counts as repeated (see
            `NearDuplicates`); None: only if it is equal.
        engine: what writes: `transformers`, or `llama_cpp` with
        gguf: the teacher as a file.

    Raises:
        RazorError: a number out of its range, or options that do not go together.
    """

    def __init__(
        self,
        tokens: int = 45_000,
        max_user_tokens: int = 40,
        max_answer_tokens: int = 200,
        batch_size: int = 64,
        temperature: float | Mapping[str, float] = 1.0,
        top_p: float = 0.95,
        top_k: int = 256,
        seed: int = 0,
        mix: Mapping[str, float] | None = None,
        prompts: str | None = None,
        passages: str | None = None,
        max_prompt_tokens: int = 256,
        prefix_tokens: int = 16,
        min_tokens: int = 1,
        near_duplicates: float | None = None,
        engine: Literal["transformers", "llama_cpp"] = "transformers",
        gguf: str | None = None,
    ) -> None:
        _check_counts(
            tokens=tokens,
            max_user_tokens=max_user_tokens,
            max_answer_tokens=max_answer_tokens,
            batch_size=batch_size,
            top_k=top_k,
            max_prompt_tokens=max_prompt_tokens,
            prefix_tokens=prefix_tokens,
            min_tokens=min_tokens,
        )
        _check_share("top_p", top_p)
        if near_duplicates is not None:
            _check_share("near_duplicates", near_duplicates)
        if min_tokens > max_answer_tokens:
            raise RazorError(
                f"data.source.min_tokens={min_tokens} is more than an answer can have "
                f"(data.source.max_answer_tokens={max_answer_tokens})."
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.sampling = Sampling(read_temperature(temperature), top_p, top_k)
        self.seed = seed
        self.asked = Asked(
            max_user_tokens, max_answer_tokens, mix, prompts, passages, max_prompt_tokens, prefix_tokens
        )
        self.min_tokens = min_tokens
        self.near_duplicates = near_duplicates
        self.engine = engine
        self.gguf = None if gguf is None else Path(gguf).expanduser()
        self._check_engine()

    def _check_engine(self) -> None:
        if self.engine not in ENGINES:
            raise RazorError(f"data.source.engine='{self.engine}'.{did_you_mean(str(self.engine), ENGINES)}")
        if self.engine == "transformers":
            if self.gguf is not None:
                raise RazorError(
                    f"data.source.gguf='{self.gguf}' is not used: give data.source.engine=llama_cpp too."
                )
            return
        if self.gguf is None:
            raise RazorError(
                "data.source.engine=llama_cpp needs the teacher as a file: data.source.gguf=FILE."
            )
        if not self.gguf.is_file():
            raise RazorError(f"data.source.gguf='{self.gguf}' is no file.")
        if isinstance(self.sampling.temperature, Ramp):
            raise RazorError(
                "data.source.temperature changes over a turn, which data.source.engine=llama_cpp cannot do: "
                "give one number."
            )

    def folder(self, tokenizer: Any, teacher: Teacher) -> Path:
        """Where the shards of this text lie."""
        return _place(self._recipe(self.asked.turns(tokenizer), teacher))

    def documents(self, tokenizer: Any, teacher: Teacher | None = None) -> list[Document]:
        """Texts until `tokens` generated ones are there, from the cache or written now.

        What was left out is said on stderr.

        Raises:
            RazorError: no teacher, one too short for the text, or one that writes nothing usable; a
                file of prompts that is missing, empty or wrong; a chat asked of a model without a
                template; no llama.cpp, or a GGUF of another model.
        """
        if teacher is None:
            raise RazorError(
                "data=teacher_made needs a teacher to write the text, and this command has none."
            )
        turns = self.asked.turns(tokenizer)
        filters = Filters(self.min_tokens, self.near_duplicates, turns.given)
        documents: list[Document] = []
        total = fruitless = 0
        with progress_bar("teacher writes", self.tokens, "tok") as bar:
            for shard, generated, written in self._shards(tokenizer, teacher, turns, bar):
                before = total
                filters.left_out[UNUSABLE] += self.batch_size - len(shard)
                for document, count in zip(shard, generated, strict=True):
                    if filters.take(document):
                        documents.append(document)
                        total += count
                bar.n = min(total, self.tokens)
                if not written:  # reading is fast, and says nothing about the teacher's speed
                    bar.initial = bar.n
                    bar.unpause()
                bar.refresh()
                fruitless = 0 if total > before else fruitless + 1
                if total >= self.tokens:
                    break
                if fruitless == FRUITLESS:
                    raise RazorError(
                        f"The teacher writes only empty, repeated or circling text ({total} of "
                        f"{self.tokens} tokens so far; left out: {filters}): raise "
                        "data.source.temperature, loosen the filters, or take another data source."
                    )
        if str(filters):
            line = f"Teacher-made text: {total:,} tokens in {len(documents):,} texts; left out: {filters}."
            bar.write(line, file=bar.fp)
        return documents

    def _shards(
        self, tokenizer: Any, teacher: Teacher, turns: Turns | Mix, bar: Any
    ) -> Iterator[tuple[list[Document], list[int], bool]]:
        """Documents, their generated tokens and whether they were written now, without end.

        The first shard that has to be written loads the teacher.
        """
        recipe = self._recipe(turns, teacher)
        folder = _place(recipe)
        writer: Callable[[list[Text], torch.Generator], None] | None = None
        number = 0
        while True:
            shard = load_shard(folder, number)
            written = shard is None
            if shard is None:
                if writer is None:
                    writer, device = self._writer(tokenizer, teacher, turns, bar.update)
                    _describe(folder, recipe)
                generator = torch.Generator(device)
                generator.manual_seed(int(digest([self.seed, number]), 16) % 2**63)
                texts = turns.texts(self.batch_size, generator, number * self.batch_size)
                writer(texts, generator)
                useful = [text for text in texts if usable(text, tokenizer)]
                shard = [_document(text) for text in useful], [_generated(text) for text in useful]
                save_shard(folder, number, *shard)
            yield *shard, written
            number += 1

    def _writer(
        self, tokenizer: Any, teacher: Teacher, turns: Turns | Mix, progress: Callable[[int], Any]
    ) -> tuple[Callable[[list[Text], torch.Generator], None], Any]:
        """What writes texts, and the device of the generator it draws with."""
        if self.gguf is not None:
            server = LlamaCpp(self.gguf, self.batch_size, turns.longest, tokenizer)
            return lambda texts, draw: server.write(
                texts, self.sampling, draw.initial_seed() % 2**32, progress
            ), "cpu"
        model = teacher.load()
        _check_room(model, turns)
        return lambda texts, draw: write(
            model, texts, self.sampling, draw, len(tokenizer), progress
        ), model.device

    def _recipe(self, turns: Turns | Mix, teacher: Teacher) -> dict[str, Any]:
        """All that shapes the text. What is as it was in the beginning adds no key: older hashes hold."""
        heat = self.sampling.temperature
        recipe = {
            "recipe": RECIPE_VERSION,
            "teacher": teacher.fingerprint,
            "turns": turns.describe(),
            "batch_size": self.batch_size,
            "sampling": [
                [heat.start, heat.end, heat.tokens] if isinstance(heat, Ramp) else heat,
                self.sampling.top_p,
                self.sampling.top_k,
            ],
            "seed": self.seed,
        }
        if self.gguf is not None:
            recipe |= {"engine": self.engine, "teacher": file_digest(self.gguf)}
        return recipe


def _place(recipe: dict[str, Any]) -> Path:
    return cache_dir() / "teacher_made" / digest(recipe)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise RazorError(f"data.source.{name}={value} must be a whole number, at least 1.")


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise RazorError(f"data.source.{name}={value} must be a number above 0 and at most 1.")


def _describe(folder: Path, recipe: dict[str, Any]) -> None:
    """Leave a note in the folder, for people: what the hash stands for."""
    with atomic_write(folder / "recipe.json") as temporary:
        temporary.write_text(json.dumps(recipe) + "\n")


def _check_room(model: Any, turns: Turns | Mix) -> None:
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if room is not None and turns.longest > room:
        raise RazorError(
            f"The teacher reads at most {room} tokens, but a text may get {turns.longest} "
            f"(template included): lower "
            "data.source.max_answer_tokens, max_user_tokens or max_prompt_tokens."
        )


def _document(text: Text) -> Document:
    first, last = text.spans[-1]
    response = np.zeros(len(text.tokens), dtype=np.bool_)
    response[first:last] = True
    return Document(np.array(text.tokens, dtype=np.int32), response)


def _generated(text: Text) -> int:
    return sum(last - first for first, last in text.spans)
