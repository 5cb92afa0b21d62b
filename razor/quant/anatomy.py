"""Which part of a model is what: where it reads its input, its layers in order, what makes its logits.

Plans, sizes, recordings and sharding ask here, so that nobody else knows what the classes of Transformers call
their parts. Two kinds of models are known. A *causal language model* looks up tokens and ends in a head over the
vocabulary. An *image classifier* (its `main_input_name` is `pixel_values`) has a body under the name that its class
gives (`base_model_prefix`), layers or stages in a ModuleList of the body or of the body's encoder, and a
`classifier` that ends in a linear layer; the convolutions before the layers read the image.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from razor.errors import RazorError

LAYERS = ("layers", "h")
"""What decoders call the list of their layers; GPT-2 says `h`."""

STAGES = ("layers", "layer", "stages", "blocks")
"""What the bodies of image classifiers, or their encoders, call theirs."""


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
    body, images = body_of(model), reads_images(model)
    owners = {"body": body, "body.encoder": getattr(body, "encoder", None)} if images else {"decoder": body}
    names = STAGES if images else LAYERS
    for owner in owners.values():
        for name in names:
            if isinstance(layers := getattr(owner, name, None), nn.ModuleList):
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
    """What reads the pixels of an image classifier: its convolutions before the first layer; of text nothing."""
    if not reads_images(model):
        return []
    inside = {id(part) for part in layers_of(model).modules()}
    return [part for part in body_of(model).modules() if isinstance(part, _ConvNd) and id(part) not in inside]


def tied(model: nn.Module) -> bool:
    """Whether output head and token embedding share their weight."""
    head = head_of(model)
    embedding = None if reads_images(model) else getattr(model, "get_input_embeddings", lambda: None)()
    return head is not None and embedding is not None and head.weight is embedding.weight
