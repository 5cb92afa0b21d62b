"""A teacher that Razor trains itself: a 16-bit model kept where any later run finds it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.models.source import ModelSource
from razor.models.task import auto_class
from razor.storage import atomic_write, cache_dir, digest, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"


class TrainedModel(ModelSource):
    """The result of a run of Razor's own, in its cache; the model's YAML says what it is trained on and how.

    Two models are the same one if architecture, data and recipe are; so a run that would have another teacher
    (images of another size, another held-out part) trains it first, and never scores images that it was taught.

    Args:
        name: for tables and file names.
        architecture: see `ModelSource`.
        experiment: option of conf/experiment that trains it.
        data: names what it is trained on, other for other data; None where no data was told, as to
            `razor formats`: then the one that is kept is meant, if there is one alone.
    """

    def __init__(
        self, name: str, architecture: Mapping[str, Any], experiment: str, data: str | None = None
    ) -> None:
        super().__init__(name, architecture)
        self.experiment, self.data = experiment, data

    @property
    def folder(self) -> Path:
        """Where it is kept: a folder of Transformers."""
        stem = f"{self.name}_{digest([self.architecture, self.experiment])}"
        kept = cache_dir() / "trained"
        found = [] if self.data is not None else sorted(kept.glob(f"{stem}_*"))
        return found[0] if len(found) == 1 else kept / f"{stem}_{self.data}"

    @property
    def is_there(self) -> bool:
        """Whether it was trained."""
        return (self.folder / WEIGHTS).is_file()

    def keep(self, folder: Path) -> None:
        """Take a folder of Transformers that a run made for this model: config.json and its weights."""
        with atomic_write(self.folder) as temporary:
            temporary.mkdir()
            for name in ("config.json", WEIGHTS):
                (temporary / name).write_bytes((folder / name).read_bytes())

    def prepare(self) -> None:
        """Look whether it was trained.

        Raises:
            RazorError: not yet; the text says what trains it.
        """
        if not self.is_there:
            which = "on one data set alone" if self.data is None else "yet on this data"
            raise RazorError(
                f"model={self.name} is not trained {which}: "
                f"python train.py experiment={self.experiment} model={self.name}"
            )

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None: it is an image classifier."""
        return None

    def fingerprint(self) -> str:
        """Checksum of the weights."""
        self.prepare()
        return digest([self.architecture, file_digest(self.folder / WEIGHTS)])

    def load(self, dtype: torch.dtype) -> PreTrainedModel:  # noqa: D102 - see ModelSource
        self.prepare()
        kind = auto_class(self.config())
        return kind.from_pretrained(str(self.folder), dtype=dtype, local_files_only=True).eval()
