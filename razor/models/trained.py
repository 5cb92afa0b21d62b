"""A teacher that Razor trains itself: a 16-bit model kept where any later run finds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.models.source import ModelSource
from razor.models.task import auto_class
from razor.storage import atomic_write, cache_dir, digest, file_digest, known_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
TAUGHT = "taught.json"
"""Beside the weights: checksums of the kept files, and hashes of what they were trained on and scored on."""


class TrainedModel(ModelSource):
    """The result of a run of Razor's own, in its cache; the model's YAML says what it is trained on and how.

    It is kept in a folder named after architecture, the experiment's name and the config of the data. So a run that
    would have another teacher (images of another size, another held-out part) trains it first. Steps, rates and the
    code are no part of the name: training it again replaces it. What the config cannot tell, images that came or
    went, the hashes kept beside the weights do; so nobody is scored on images that the teacher was taught.

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

    def keep(self, folder: Path, data: Mapping[str, str]) -> None:
        """Take a folder of Transformers that a run made for this model: config.json and its weights.

        Args:
            folder: of the run's export.
            data: hashes of the run's images, those trained on and those held out.
        """
        with atomic_write(self.folder) as temporary:
            temporary.mkdir()
            sums = {}
            for name in ("config.json", WEIGHTS):
                (temporary / name).write_bytes((folder / name).read_bytes())
                sums[name] = file_digest(temporary / name)
            (temporary / TAUGHT).write_text(json.dumps({"sha256": sums, "data": dict(data)}, indent=1))

    def check_data(self, hashes: Mapping[str, str]) -> None:
        """See `ModelSource`; a teacher that was kept without hashes is taken as it is."""
        if (then := self._taught().get("data")) and dict(then) != dict(hashes):
            raise RazorError(
                f"The images are not those that model={self.name} was trained and scored on, so some that are held "
                f"out now may have taught it: remove '{self.folder}' and the same command trains it anew."
            )

    def _taught(self) -> dict[str, Any]:
        path = self.folder / TAUGHT
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return {"sha256": dict(found["sha256"]), "data": dict(found["data"])}
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(TAUGHT) from error

    def _damaged(self, name: str) -> RazorError:
        return RazorError(
            f"'{self.folder / name}' is damaged: remove '{self.folder}' and the same command trains "
            f"model={self.name} anew."
        )

    def prepare(self) -> None:
        """Look whether it was trained, and is still what it was.

        Raises:
            RazorError: not yet; the text says what trains it. Or its files are damaged.
        """
        if not self.is_there:
            which = "on one data set alone" if self.data is None else "yet on this data"
            raise RazorError(
                f"model={self.name} is not trained {which}: "
                f"python train.py experiment={self.experiment} model={self.name}"
            )
        for name, then in self._taught().get("sha256", {}).items():
            path = self.folder / name
            if not path.is_file() or known_digest(path) != then:
                raise self._damaged(name)

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """None: it is an image classifier."""
        return None

    def fingerprint(self) -> str:
        """Checksum of the weights."""
        self.prepare()
        return digest([self.architecture, known_digest(self.folder / WEIGHTS)])

    def load(self, dtype: torch.dtype) -> PreTrainedModel:  # noqa: D102 - see ModelSource
        self.prepare()
        kind = auto_class(self.config())
        return kind.from_pretrained(str(self.folder), dtype=dtype, local_files_only=True).eval()
