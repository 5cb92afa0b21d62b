"""What a model is for: the one place that chooses among Transformers' auto classes.

A *task* is what goes in and what comes out. Text: tokens in, the next token's distribution out. Images: pixels in,
the class's distribution out. Media: text with images or sound between its words in, the next token's distribution
out. A config tells by its `model_type`, for which Transformers has classes of the one task or of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Task = Literal["text", "images", "media"]


AUTO: dict[Task, str] = {
    "text": "AutoModelForCausalLM",
    "images": "AutoModelForImageClassification",
    "media": "AutoModelForMultimodalLM",
}
"""Transformers' auto class of a task."""


def task_of(config: PretrainedConfig) -> Task:
    """Of a model's config; what Transformers also has a plain language model for is taken for one."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "text"
    if kind in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        return "images"
    return "media" if kind in MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES else "text"


def auto_class(config: PretrainedConfig) -> Any:
    """`AutoModelForCausalLM`, `AutoModelForImageClassification` or `AutoModelForMultimodalLM`."""
    import transformers

    return getattr(transformers, AUTO[task_of(config)])


def outputs_of(config: PretrainedConfig) -> int:
    """How many things a model chooses from: tokens of its vocabulary, or classes."""
    return int(
        config.num_labels if task_of(config) == "images" else config.get_text_config().vocab_size  # type: ignore[arg-type]
    )


def class_names_of(config: PretrainedConfig) -> tuple[str, ...] | None:
    """What a classifier's config calls its classes, in their order; None if it only numbers them (LABEL_0 ...)."""
    named: dict[Any, str] = dict(config.id2label or {})
    usual = [f"LABEL_{number}" for number in range(len(named))]
    found = [str(named.get(number, label)) for number, label in enumerate(usual)]
    return None if found == usual else tuple(found)


def name_classes(config: PretrainedConfig, names: Sequence[str]) -> None:
    """Let a classifier's config call its classes so, as pipelines of Transformers show them."""
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def check_same_outputs(model: str, own: PretrainedConfig, teacher: str, theirs: PretrainedConfig) -> None:
    """Raise RazorError unless two models, of these names, choose from equally many things of one kind."""
    if task_of(own) != task_of(theirs):
        raise RazorError(
            f"teacher={teacher} is a model of {task_of(theirs)}, model={model} of {task_of(own)}: losses between "
            "distributions need two models of one kind."
        )
    sizes = outputs_of(theirs), outputs_of(own)
    if sizes[0] == sizes[1]:
        return
    if task_of(own) == "images":
        raise RazorError(
            f"teacher={teacher} tells {sizes[0]} classes apart, model={model} {sizes[1]}: losses between "
            "distributions need the same classes."
        )
    raise RazorError(
        f"teacher={teacher} has a vocabulary of {sizes[0]} tokens, model={model} of {sizes[1]}: "
        "losses between distributions need one vocabulary, so take a teacher of the same family."
    )
