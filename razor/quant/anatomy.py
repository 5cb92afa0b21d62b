"""Which part of a model is what: where it reads its input, its layers in order, what makes its logits.

Plans, sizes, recordings and sharding ask here, so that nobody else knows what the classes of Transformers call
their parts. Two kinds of models are known. A *causal language model* looks up tokens and ends in a head over the
vocabulary; if it also sees or hears, there are *towers* beside its decoder, which turn images and sound into
vectors that take the place of tokens. An *image classifier* (its `main_input_name` is `pixel_values`) has a body
under the name that its class gives (`base_model_prefix`), layers or stages in a ModuleList of the body or of the
body's encoder, and a `classifier` that ends in a linear layer; the convolutions before the layers read the image,
as they do in a tower.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from razor.errors import RazorError

LAYERS = ("layers", "h")
"""What decoders call the list of their layers; GPT-2 says `h`."""

STAGES = ("layers", "layer", "stages", "blocks")
"""What towers and the bodies of image classifiers, or their encoders, call theirs."""

TOWERS = {"vision": "image", "audio": "audio"}
"""Towers by their names in Razor, and what Transformers calls what they read."""


def reads_images(model: nn.Module) -> bool:
    """Whether a model looks at pixels instead of tokens."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def body_of(model: nn.Module) -> Any:
    """The model below its output head.

    Raises:
        RazorError: an image classifier without a body of the name that its class gives.
    """
    own: Any = model
    if not reads_images(model):
        return own.get_decoder()
    body = getattr(model, getattr(model, "base_model_prefix", "") or "-", None)
    if not isinstance(body, nn.Module):
        raise RazorError(
            f"{type(model).__name__} has no body under its base_model_prefix, where Razor looks."
        )
    return body


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The layers (of a convolutional network: its stages), in order.

    Raises:
        RazorError: they are nowhere that Razor looks.
    """
    body = body_of(model)
    if reads_images(model):
        return _list_of(model, {"body": body, "body.encoder": getattr(body, "encoder", None)}, STAGES)
    return _list_of(model, {"decoder": body}, LAYERS)


def towers_of(model: nn.Module) -> dict[str, nn.Module]:
    """What turns images and sound into vectors for a decoder, by names of TOWERS; empty if it reads text alone."""
    own: Any = model
    read = getattr(model, "input_modalities", ())
    if reads_images(model) or not hasattr(model, "get_encoder") or isinstance(read, str):
        return {}
    found = {name: own.get_encoder(modality=kind) for name, kind in TOWERS.items() if kind in read}
    whole = {id(part) for part in (model, own.base_model, body_of(model))}
    return {name: tower for name, tower in found.items() if id(tower) not in whole}


def tower_layers(tower: nn.Module) -> nn.ModuleList | None:
    """The layers of a tower, in order; None if they are nowhere that Razor looks: then no loss asks for them."""
    return _found((tower, getattr(tower, "encoder", None)), STAGES)


def _found(owners: Iterable[Any], names: tuple[str, ...]) -> nn.ModuleList | None:
    lists = (getattr(owner, name, None) for owner in owners for name in names)
    return next((found for found in lists if isinstance(found, nn.ModuleList)), None)


def _list_of(model: nn.Module, owners: dict[str, Any], names: tuple[str, ...]) -> nn.ModuleList:
    if (layers := _found(owners.values(), names)) is not None:
        return layers
    places = ", ".join(f"{owner}.{name}" for owner in owners for name in names)
    raise RazorError(f"{type(model).__name__} keeps its layers where Razor does not look ({places}).")


def head_of(model: nn.Module) -> Any:
    """The linear layer that makes the logits; None if a model has none.

    Raises:
        RazorError: an image classifier whose `classifier` does not end in one.
    """
    if not reads_images(model):
        return getattr(model, "get_output_embeddings", lambda: None)()
    classifier = getattr(model, "classifier", None)
    parts = list(classifier.modules()) if isinstance(classifier, nn.Module) else []
    last = [part for part in parts if hasattr(part, "in_features")]
    if not last:
        raise RazorError(f"{type(model).__name__} has no `classifier` that ends in a linear layer.")
    return last[-1]


def entrance_of(model: nn.Module) -> list[nn.Module]:
    """What reads pixels or sound: the convolutions of a body or a tower before its layers; of text nothing."""
    if reads_images(model):
        bodies = [(body_of(model), layers_of(model))]
    else:
        found = ((tower, tower_layers(tower)) for tower in towers_of(model).values())
        bodies = [(tower, layers) for tower, layers in found if layers is not None]
    inside = {id(part) for _, layers in bodies for part in layers.modules()}
    parts = [part for body, _ in bodies for part in body.modules()]
    return [part for part in parts if isinstance(part, _ConvNd) and id(part) not in inside]


def tied(model: nn.Module) -> bool:
    """Whether output head and token embedding share their weight."""
    head = head_of(model)
    embedding = None if reads_images(model) else getattr(model, "get_input_embeddings", lambda: None)()
    return head is not None and embedding is not None and head.weight is embedding.weight
