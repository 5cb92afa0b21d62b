"""Any language model, with towers or without, or image classifier of the Hugging Face hub, or a local folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.models.processors import Processors
from razor.models.source import ModelSource
from razor.models.task import auto_class, task_of
from razor.quant.anatomy import towers_of
from razor.storage import digest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class HubModel(ModelSource):
    """A model by hub id or local folder; never runs code that comes with it.

    Args:
        name: for tables and file names.
        id: "organisation/name" or a path.
        revision: branch, tag or commit on the hub.
        architecture: see `ModelSource`; None reads it from the model itself.
        trust_architecture: load the weights into the stated architecture, not the one the hub names: for models
            whose own code is a standard architecture under another name.
    """

    def __init__(
        self,
        name: str,
        id: str,
        revision: str | None = None,
        architecture: Mapping[str, Any] | None = None,
        trust_architecture: bool = False,
    ) -> None:
        super().__init__(name, architecture)
        self.trust_architecture = trust_architecture
        self.id, self.revision = id, revision
        self._commit: str | None = None

    def _get(self, kind: type, **options: Any) -> Any:
        """`kind.from_pretrained`, with what goes wrong told in a line."""
        if self.id.startswith((".", "/", "~")) and not Path(self.id).expanduser().is_dir():
            raise RazorError(f"model.id='{self.id}' is no folder. Give a local model folder or a hub id.")
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)  # its retries
        try:
            path = str(Path(self.id).expanduser()) if self.id.startswith("~") else self.id
            return kind.from_pretrained(path, revision=self.revision, **options)  # type: ignore[attr-defined]
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:240]
            raise RazorError(
                f"The model '{self.id}' could not be loaded: {reason} | Check the id, your network and, for a "
                "gated model, `hf auth login`; a local folder works too, and model=smollm2_135m needs no hub."
            ) from error

    def config(self) -> PretrainedConfig:
        """From the YAML if it states the architecture, else from the hub or folder."""
        if self.architecture is not None:
            return super().config()
        from transformers import AutoConfig

        return self._get(AutoConfig)

    def prepare(self) -> None:
        """Fetch config and tokenizer, which shows early whether the model can be had."""
        from transformers import AutoConfig, PretrainedConfig

        # AutoConfig also finds out whether Transformers knows the architecture
        kind = PretrainedConfig if self.trust_architecture else AutoConfig
        self._commit = getattr(self._get(kind), "_commit_hash", None)
        self.tokenizer()

    def tokenizer(self) -> PreTrainedTokenizerBase | None:  # noqa: D102 - see ModelSource
        if self.task == "images":
            return None
        from transformers import AutoTokenizer

        return self._get(AutoTokenizer)

    def processors(self) -> Processors:
        """Those that lie beside the weights."""
        if self.task != "media":
            return Processors()
        from transformers import AutoFeatureExtractor, AutoImageProcessor

        towers = towers_of(self.skeleton())
        return Processors(
            self._get(AutoImageProcessor) if "vision" in towers else None,
            self._get(AutoFeatureExtractor) if "audio" in towers else None,
        )

    def fingerprint(self) -> str:
        """The hub's commit, or names, sizes and times of a folder's files."""
        folder = Path(self.id).expanduser()
        if folder.is_dir():
            files = sorted(p for p in folder.iterdir() if p.is_file())
            return digest([[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files])
        if self._commit is None:
            self.prepare()
        return digest([self.id, self.revision, self._commit])

    def load(self, dtype: torch.dtype) -> PreTrainedModel:  # noqa: D102
        config = self.config()
        stated = {"config": config} if self.trust_architecture else {}
        # a convolutional network has no attention that could be said to be SDPA
        sdpa = {} if task_of(config) == "images" else {"attn_implementation": "sdpa"}
        model = self._get(auto_class(config), dtype=dtype, **sdpa, **stated)
        return model.eval()
