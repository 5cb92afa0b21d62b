"""A pass that begins in the middle of a decoder.

Switching a matrix of layer l changes nothing before it. With the hidden states that go into layer l at hand, a pass
needs only the layers from there on: half the work on average. The model runs as it is, which makes masks and rotary
angles in its own way; layers before hand through what they are given, and layer l is given what was kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from razor.models import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def starting_at(model: PreTrainedModel, layer: int, state: Tensor, tuples: bool = False) -> Iterator[None]:
    """While it is open, passes of a model begin at a decoder layer.

    Args:
        model: in evaluation mode.
        layer: index of the first one that runs.
        state: [B, T, width] what goes into it.
        tuples: whether its layers give tuples.
    """
    blocks = layers_of(model)

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return ((state, *given[1:]), named) if given else ((), named | {"hidden_states": state})

    def forward(*given: Any, **named: Any) -> Any:
        passed = given[0] if given else named["hidden_states"]
        return (passed,) if tuples else passed

    skipped = list(blocks[:layer])
    former = [block.__dict__.get("forward") for block in skipped]
    handle = blocks[layer].register_forward_pre_hook(enter, with_kwargs=True)
    for block in skipped:
        block.forward = forward
    try:
        yield
    finally:
        handle.remove()
        for block, own in zip(skipped, former, strict=True):
            del block.__dict__["forward"]
            if own is not None:
                block.forward = own
