"""A pass that begins in the middle of a decoder.

What changes from layer l on changes nothing before it. With the hidden states that go into layer l at hand, a pass
needs only the layers from there on. The model runs as it is, which makes masks and rotary angles in its own way;
layers before hand through what they are given, and layer l is given what was kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def starting_at(
    blocks: Sequence[nn.Module] | nn.ModuleList, layer: int, state: Tensor | None, tuples: bool = False
) -> Iterator[None]:
    """While it is open, passes of a model begin at a decoder layer.

    Args:
        blocks: the decoder's layers, as `layers_of` gives them.
        layer: index of the first one that runs.
        state: [B, T, width] what goes into it; None: what the layers before hand through.
        tuples: whether layers give tuples.
    """

    def enter(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if state is None:
            return None
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
