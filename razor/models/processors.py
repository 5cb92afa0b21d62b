"""What makes numbers of images and sound: Transformers' image processors and feature extractors.

They are taken one by one, as `preprocessor_config.json` describes them, and not as the `Processor` of a model,
which cannot be made where torchvision is missing. A model without files of its own (random weights) states them in
its YAML:

    processors:
      image: {image_processor_type: Qwen2VLImageProcessorPil, patch_size: 4, merge_size: 2}
      audio: {feature_extractor_type: WhisperFeatureExtractor, feature_size: 16}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from razor.errors import RazorError

TYPES = {"image": "image_processor_type", "audio": "feature_extractor_type"}
"""What preprocessor_config.json calls their classes."""


@dataclass(frozen=True)
class Processors:
    """Of one model.

    Attributes:
        image: an image processor; None if it sees nothing.
        audio: a feature extractor; None if it hears nothing.
    """

    image: Any = None
    audio: Any = None


def stated_processors(model: str, stated: Mapping[str, Any]) -> Processors:
    """From what a YAML states.

    Args:
        model: its name, for error texts.
        stated: "image" and "audio", each with its class under the name of TYPES and the class's arguments.

    Raises:
        RazorError: no such class, or arguments that it does not take.
    """
    if unknown := sorted(set(stated) - set(TYPES)):
        raise RazorError(f"model={model} states processors of '{unknown[0]}'. Choices: {', '.join(TYPES)}.")
    return Processors(**{kind: _made(model, kind, dict(fields)) for kind, fields in stated.items()})


def _made(model: str, kind: str, fields: dict[str, Any]) -> Any:
    import transformers

    name = str(fields.pop(TYPES[kind], None))
    cls = getattr(transformers, name, None)
    if cls is None:
        raise RazorError(
            f"model={model}: processors.{kind}.{TYPES[kind]}='{name}' is no class of Transformers "
            "(such as Qwen2VLImageProcessorPil, WhisperFeatureExtractor)."
        )
    try:
        return cls(**fields)
    except (TypeError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"model={model}: {name} does not take its processors.{kind}: {reason}") from error
