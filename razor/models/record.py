"""Run a model and record what the losses asked for.

Hidden states are caught by hooks on just the layers wanted, and the head is not run at all: the losses make
logits themselves, in chunks (see `razor.distill.chunked`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from razor.distill import Batch, Trace
from razor.errors import RazorError
from razor.quant import QuantLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LAYERS = ("layers", "h")
"""What decoders call the list of their layers; GPT-2 says `h`."""


def record(model: PreTrainedModel, batch: Batch, layers: Iterable[int] = ()) -> Trace:
    """One pass over a batch of packed documents.

    Args:
        model: a causal language model of Transformers; gradients follow the caller's mode.
        batch: see `Batch`; documents are kept apart by their position ids.
        layers: indices of the hidden states to keep, as Transformers lists them.
    """
    decoder, wanted = decoder_of(model), set(layers)
    states: dict[int, Tensor] = {}
    blocks = layers_of(model)
    handles = [
        blocks[index - 1].register_forward_hook(_keep(states, index))
        for index in wanted
        if 0 < index < len(blocks)
    ]
    if 0 in wanted:  # what goes into the first layer: some models add positions to the embedding
        handles.append(blocks[0].register_forward_pre_hook(_keep_input(states), with_kwargs=True))
    try:
        hidden = decoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    if len(blocks) in wanted:
        states[len(blocks)] = hidden
    head = model.get_output_embeddings()
    if isinstance(head, QuantLinear):
        weight = head.quantized_weight(hidden.dtype)
        return Trace(head.quantized_input(hidden), weight, head.bias, states)
    return Trace(hidden, head.weight, head.bias, states)


def decoder_of(model: PreTrainedModel) -> Any:
    """The model below its output head."""
    return model.get_decoder()


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, in order.

    Raises:
        RazorError: they are nowhere that Razor looks.
    """
    for name in LAYERS:
        if isinstance(layers := getattr(decoder_of(model), name, None), nn.ModuleList):
            return layers
    raise RazorError(
        f"{type(model).__name__} keeps its layers where Razor does not look "
        f"({', '.join(f'decoder.{name}' for name in LAYERS)})."
    )


def _keep(states: dict[int, Tensor], index: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        states[index] = output[0] if isinstance(output, tuple) else output

    return hook


def _keep_input(states: dict[int, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        states[0] = inputs[0] if inputs else named["hidden_states"]

    return hook
