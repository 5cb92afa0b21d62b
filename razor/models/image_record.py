"""Run an image classifier and record what the losses asked for (see `razor.models.record`).

The classifier runs whole, as anybody would call it, and what its linear layer is given is caught there: how a body
pools its feature map, or which of its tokens stands for the image, need not be known. That vector is the trace's
hidden state, one place an image. A feature map [B, channels, height, width] is recorded as [B, height x width,
channels], so that losses on hidden states see vectors at places, as in text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.distill import ImageBatch, Needs, Shape, Trace
from razor.errors import RazorError
from razor.models.intercepted import reachable_attention
from razor.models.recorded_attention import recorded_attention
from razor.models.task import auto_class
from razor.quant import QuantLinear
from razor.quant.anatomy import body_of, entrance_of, head_of, layers_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

USUAL = 224
"""Height and width of images, for a config that states none."""


def record_images(model: PreTrainedModel, batch: ImageBatch, needs: Needs) -> Trace:
    """One pass over a batch of images; the model stays as it was.

    Raises:
        RazorError: something is needed that this model does not show.
    """
    blocks, head = layers_of(model), head_of(model)
    if needs.routers:
        raise RazorError(f"{type(model).__name__} has no routers that Razor records.")
    with (
        _states(model, blocks, needs.states) as states,
        recorded_attention(model, blocks, needs.attention) as attention,
        _given(head) as given,
    ):
        model(pixel_values=pixels_for(model, batch.pixel_values))
    if missing := sorted(needs.attention - set(attention)):
        raise RazorError(f"Layer {missing[0]} of {type(model).__name__} ran past what records its attention.")
    hidden, weight = given[0], head.weight
    if isinstance(head, QuantLinear):
        hidden, weight = head.quantized_input(hidden), head.quantized_weight(hidden.dtype)
    return Trace(hidden.unsqueeze(1), weight, head.bias, states, attention)


def pixels_for(model: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels in the dtype that a classifier computes in."""
    first: Any = entrance_of(model)
    if not first:
        return pixels
    dtype = getattr(first[0], "compute_dtype", None)
    return pixels.to(first[0].weight.dtype if dtype is None else dtype)


def image_shape(model: PreTrainedModel) -> Shape:
    """What losses have to know of a classifier: a copy without weights is run to see its hidden states."""
    config, blocks = model.config, layers_of(model)
    with torch.device("meta"):
        probe = auto_class(config).from_config(config).eval()
        pixels = torch.zeros(1, *image_size_of(config))
    with torch.no_grad():
        trace = record_images(
            probe, ImageBatch.of(pixels, torch.zeros(1, device="meta")), _everything(blocks)
        )
    seen = [trace.states[index] for index in range(len(blocks) + 1)]
    heads = getattr(config, "num_attention_heads", 0)
    heads = heads if isinstance(heads, int) else 0  # of some, one for each stage
    width = seen[-1].shape[2]
    return Shape(
        name=type(model).__name__,
        layers=len(blocks),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=width // max(1, heads),
        attention=frozenset(reachable_attention(blocks)) if heads else frozenset(),
        widths=tuple(state.shape[2] for state in seen),
        places=tuple(state.shape[1] for state in seen),
    )


def image_size_of(config: PretrainedConfig) -> tuple[int, int, int]:
    """(channels, height, width) of the images that a classifier is made for."""
    size: Any = getattr(config, "image_size", None) or USUAL
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(config, "num_channels", 3)), int(height), int(width)


def _everything(blocks: nn.ModuleList) -> Needs:
    return Needs(states=frozenset(range(len(blocks) + 1)))


@contextmanager
def _given(head: nn.Module) -> Iterator[list[Tensor]]:
    """While it is open, what a layer is given lands in the list."""
    kept: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def _states(model: nn.Module, blocks: nn.ModuleList, wanted: frozenset[int]) -> Iterator[dict[int, Tensor]]:
    """While it is open, passes leave hidden states [B, places, width] in the dict given."""
    kept: dict[int, Tensor] = {}

    def keep(index: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            kept[index] = places_first(output[0] if isinstance(output, tuple) else output)

        return hook

    def keep_input(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        kept[0] = places_first(inputs[0] if inputs else named["hidden_states"])

    def keep_last(module: nn.Module, inputs: Any, output: Any) -> None:
        last = output[0] if isinstance(output, tuple) else output.last_hidden_state
        kept[len(blocks)] = places_first(last)

    handles = [blocks[i - 1].register_forward_hook(keep(i)) for i in wanted if 0 < i < len(blocks)]
    if 0 in wanted:
        handles.append(blocks[0].register_forward_pre_hook(keep_input, with_kwargs=True))
    if len(blocks) in wanted:  # after the final norm, if there is one
        handles.append(body_of(model).register_forward_hook(keep_last))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def places_first(state: Tensor) -> Tensor:
    """[B, channels, height, width] as [B, height x width, channels]; anything else as it is."""
    return state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
