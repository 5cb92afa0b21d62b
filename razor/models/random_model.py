"""Random weights in a stated architecture: for tests, and for size, speed and memory of a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError
from razor.models.byte_tokenizer import byte_tokenizer
from razor.models.processors import Processors, stated_processors
from razor.models.source import ModelSource
from razor.models.task import auto_class
from razor.storage import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RandomModel(ModelSource):
    """A seeded random model; of text, with a byte-level tokenizer.

    Args:
        name: for tables and file names.
        architecture: see `ModelSource`; its vocabulary must hold the byte tokenizer's.
        seed: of the weights.
        chat: give the tokenizer a chat template.
        processors: what makes numbers of images and sound, see `razor.models.processors`.
    """

    def __init__(
        self,
        name: str,
        architecture: Mapping[str, Any],
        seed: int = 0,
        chat: bool = True,
        processors: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name, architecture)
        self.seed, self.chat, self._processors = seed, chat, dict(processors or {})

    def prepare(self) -> None:
        """Check that the vocabulary holds the tokenizer's."""
        self.tokenizer()

    def tokenizer(self) -> PreTrainedTokenizerBase | None:  # noqa: D102 - see ModelSource
        if self.task == "images":
            return None
        tokenizer = byte_tokenizer(chat=self.chat, media=self.task == "media")
        vocabulary = self.config().get_text_config().vocab_size
        if vocabulary < len(tokenizer):
            raise RazorError(
                f"Model '{self.name}' has {vocabulary} tokens; the byte tokenizer needs {len(tokenizer)} "
                "(model.architecture.vocab_size=...)."
            )
        return tokenizer

    def processors(self) -> Processors:  # noqa: D102 - see ModelSource
        return stated_processors(self.name, self._processors) if self.task == "media" else Processors()

    def fingerprint(self) -> str:
        """Hash of architecture and seed."""
        return digest([self.architecture, self.seed, self.chat, "random"])

    def load(self, dtype: torch.dtype) -> PreTrainedModel:  # noqa: D102
        tokenizer, config = self.tokenizer(), self.config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            # not .to(dtype): that would round the rotary frequencies too
            model = auto_class(config).from_config(config, dtype=dtype).eval()
        if tokenizer is not None:
            model.generation_config.eos_token_id = tokenizer.eos_token_id
            model.generation_config.pad_token_id = tokenizer.pad_token_id
        return model
