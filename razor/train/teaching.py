"""Who teaches a run, and how its word comes to the student.

Usually the model itself, before it was quantized, runs beside the student. It may be another model with the same
vocabulary. Or it has spoken once, and what was kept of that is read from a cache: then no teacher is in memory
while the student trains, and it is loaded for the minutes of scoring alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from razor.data.corpus import DEFAULT, Corpus
from razor.data.reading import Reading
from razor.data.rows import Wanted
from razor.data.sources.base import DataSource, Teacher
from razor.data.teacher_cache import Identity, identity_of, open_cache
from razor.data.teacher_cache_kinds import Kept
from razor.errors import RazorError
from razor.models import ModelSource
from razor.models.media_reader import MediaReader
from razor.models.task import check_same_outputs, class_names_of
from razor.train.facts import text_hashes
from razor.train.settings import TrainSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Cached:
    """Targets that were made before.

    Attributes:
        kept: what of the teacher's distributions.
        folder: where they lie; None: in Razor's cache.
        command: what would make them.
    """

    kept: Kept
    folder: Path | None
    command: str


@dataclass(frozen=True)
class Teaching:
    """The models of a run, the text, and the teacher's way.

    Attributes:
        model: what becomes the student.
        teacher: the same object, or another model with its vocabulary.
        source: of the text, or of images.
        sequence_length, held_out, seed: see `Wanted`.
        settings: give the compute dtype and the device.
        cached: in place of a teacher that runs in every step.
        reading: see `Corpus.build`.
    """

    model: ModelSource
    teacher: ModelSource
    source: DataSource
    sequence_length: int
    held_out: int
    seed: int
    settings: TrainSettings
    cached: Cached | None = None
    reading: Reading = DEFAULT

    @property
    def another(self) -> bool:
        """Whether the teacher is not the model itself."""
        return self.teacher is not self.model

    @property
    def longest_text(self) -> int | None:
        """Longest sequence that both models can read, tokens; None if they do not say."""
        sources = [self.model, self.teacher] if self.another else [self.model]
        lengths = [longest_text(source) for source in sources]
        return min((length for length in lengths if length is not None), default=None)

    def check(self) -> None:
        """Find text that is not there, prepare both models, and find what does not fit from their descriptions.

        Raises:
            RazorError: text or a model that cannot be had, or vocabularies that differ.
        """
        self.check_task()
        self.source.check_for(self.model.tokenizer)
        self.model.prepare()
        if self.another:
            check_vocabularies(self.model, self.teacher)
        if self.cached is not None:
            if self.model.task != "text":
                raise RazorError(
                    f"teacher=cached keeps what a teacher says of text: for {self.model.task} leave it out."
                )
            self.cached.kept.check(self.teacher.config().get_text_config().vocab_size)

    def check_task(self) -> None:
        """Raise RazorError unless the model reads what the data is."""
        if self.model.task != self.source.task:
            raise RazorError(
                f"model={self.model.name} reads {self.model.task}, and the data is {self.source.task}: choose a "
                "model for the data, or data for the model (data=digits has images, data=digits_and_sounds media: "
                "text with images and sound; the other options have text)."
            )

    def load_teacher(self) -> PreTrainedModel:
        """The teacher, on the device of the run."""
        return nn.Module.to(self.teacher.load(self.settings.dtype), self.settings.device)

    def corpus(self) -> Corpus:
        """The text, written by the teacher if the source wants that, images or both; without cached targets.

        Raises:
            RazorError: also if a model was trained by Razor on other images, perhaps on some that are held out now.
        """
        task = self.model.task
        found = self.source.corpus(
            Wanted(
                tokenizer=self.model.tokenizer(),
                held_out=self.held_out,
                seed=self.seed,
                sequence_length=self.sequence_length,
                model_max_length=self.longest_text,
                teacher=Teacher(self.teacher.fingerprint(), self.load_teacher),
                reading=self.reading,
                reader=MediaReader(self.model) if task == "media" else None,
                class_names=class_names_of(self.model.config()) if task == "images" else None,
            )
        )
        if task == "images":  # models of text are not trained here, and to hash much text takes a while
            for source in (self.model, self.teacher):
                source.check_data(text_hashes(found))
        return found

    def identity(self, corpus: Corpus | None, kept: Kept) -> Identity:
        """What a cache for this run is of; without the text, all but that."""
        return identity_of(
            None if corpus is None else corpus.text,
            self.model.tokenizer(),
            self.teacher.fingerprint(),
            self.settings.compute_dtype,
            kept,
        )

    def check_cache(self) -> None:
        """Raise RazorError if no cache can be that of this run, whatever its text; cheap."""
        if self.cached is not None:
            open_cache(self.identity(None, self.cached.kept), self.cached.folder, self.cached.command)

    def taught(self, corpus: Corpus) -> Corpus:
        """The corpus with the cached targets of its training rows, if it is to have them.

        Raises:
            RazorError: they are not there, of something else, incomplete or damaged.
        """
        if self.cached is None:
            return corpus
        identity = self.identity(corpus, self.cached.kept)
        cache = open_cache(identity, self.cached.folder, self.cached.command)
        return replace(corpus, train=replace(corpus.text, taught=cache))


def check_vocabularies(model: ModelSource, teacher: ModelSource) -> None:
    """Raise RazorError unless a token (or a class) means the same to both; prepares the teacher if sizes agree."""
    check_same_outputs(model.name, model.config(), teacher.name, teacher.config())
    teacher.prepare()
    if model.task == "images":
        return
    own, theirs = (source.tokenizer().get_vocab() for source in (model, teacher))  # type: ignore[union-attr]
    if own != theirs:
        word = min(own.items() ^ theirs.items(), key=lambda pair: (pair[1], pair[0]))[0]
        raise RazorError(
            f"The tokenizers of teacher={teacher.name} and model={model.name} differ (token '{word}': "
            f"{theirs.get(word)} and {own.get(word)}): take a teacher of the same family."
        )


def longest_text(model: ModelSource) -> int | None:
    """Longest sequence the model can read, tokens; None if it does not say."""
    return getattr(model.config().get_text_config(), "max_position_embeddings", None)


Lend = Callable[[], "PreTrainedModel"]
"""Gives the teacher for a while: the one that is there anyway, or one loaded for the purpose."""
