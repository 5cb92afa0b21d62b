"""Catch what attention works on, at the door where Transformers hands it over (see `intercepted`).

They are caught there whatever the projections are called or however they are fused, and the function of before
(SDPA, eager, flash attention) does its work on them; of quantized keys and values the rounded ones are caught. When
gradient checkpointing runs a layer again in the backward pass, nothing is recorded and the numbers are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from razor.distill import AttentionInputs
from razor.errors import RazorError
from razor.models.intercepted import Attention, intercepted, reachable_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def recorded_attention(
    model: PreTrainedModel, blocks: nn.ModuleList, layers: Collection[int]
) -> Iterator[dict[int, AttentionInputs]]:
    """While it is open, passes of `model` leave the attention inputs of `layers` in the dict given.

    Raises:
        RazorError: the attention of a layer cannot be reached.
    """
    kept: dict[int, AttentionInputs] = {}
    found = reachable_attention(blocks) if layers else {}
    if missing := sorted(set(layers) - set(found)):
        raise RazorError(
            f"Layer {missing[0]} of {type(model).__name__} has no attention that calls Transformers' attention "
            "functions once, where its inputs are recorded."
        )
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(intercepted(found[layer], _recorder(kept, layer)))
        yield kept


def _recorder(kept: dict[int, AttentionInputs], layer: int) -> Callable[[Attention], Attention]:
    def wrap(own: Attention) -> Attention:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any
        ) -> Any:
            if layer in kept:
                raise RazorError(
                    f"Layer {layer} runs attention twice in a pass: its inputs cannot be recorded."
                )
            kept[layer] = AttentionInputs(query, key, value)
            return own(module, query, key, value, *rest, **options)

        return attention

    return wrap
