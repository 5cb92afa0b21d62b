"""Where a model comes from.

Every source answers the same few questions: its architecture (from the YAML, so that sizes and plans need
neither network nor weights), its tokenizer, its weights, and a fingerprint by which anything derived from it
(teacher-made text, cached scores) can be cached safely.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from razor.errors import RazorError, did_you_mean
from razor.models.processors import Processors
from razor.models.task import Task, auto_class, task_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class ModelSource(ABC):
    """A model that can be loaded: a language model, with eyes and ears or without, or an image classifier.

    Args:
        name: for tables and file names.
        architecture: fields of its Transformers config, `model_type` among them; None if only the source knows.
    """

    def __init__(self, name: str, architecture: Mapping[str, Any] | None) -> None:
        self.name = name
        self.architecture = dict(architecture) if architecture else None

    def config(self) -> PretrainedConfig:
        """The Transformers config, from the YAML's architecture."""
        if self.architecture is None:
            raise RazorError(f"Model '{self.name}' states no architecture (conf/model/*.yaml: architecture).")
        return config_from(self.name, self.architecture)

    def skeleton(self) -> PreTrainedModel:
        """The model without weights, on the meta device: enough for plans and sizes."""
        config = self.config()
        with torch.device("meta"):
            return auto_class(config).from_config(config)

    @property
    def task(self) -> Task:
        """What it reads, as its config tells: "text", "images" or "media"."""
        return task_of(self.config())

    def prepare(self) -> None:  # noqa: B027 - most sources have nothing to prepare
        """Check early, before heavy work, that the model can be had.

        Raises:
            RazorError: it cannot; the text says what to do.
        """

    def check_data(self, hashes: Mapping[str, str]) -> None:  # noqa: B027 - only what Razor trained knows its data
        """Hold a run's data, as hashes of what is trained on and of what is held out, against what it was taught.

        Raises:
            RazorError: it was trained on other data, so what is held out now may be among it.
        """

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Its tokenizer; None if it reads no text."""

    def processors(self) -> Processors:
        """What makes numbers of images and sound for it; nothing for a model that reads neither between words."""
        return Processors()

    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies weights and tokenizer."""

    @abstractmethod
    def load(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model on the CPU, in evaluation mode, with SDPA attention if it has it."""


def config_from(name: str, architecture: Mapping[str, Any]) -> PretrainedConfig:
    """A Transformers config from its fields.

    Raises:
        RazorError: `model_type` is missing or not one that Transformers knows.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    fields = dict(architecture)
    kind = str(fields.pop("model_type", None))
    if kind not in CONFIG_MAPPING:
        near = did_you_mean(kind, list(CONFIG_MAPPING)).split(" Choices:")[0]
        raise RazorError(f"Model '{name}' has model_type '{kind}', which Transformers does not know.{near}")
    return AutoConfig.for_model(kind, **fields)
