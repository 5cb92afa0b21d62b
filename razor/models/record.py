"""Run a model and record what the losses asked for.

Hidden states are caught by hooks on just the layers wanted, attention inputs where attention is called, router
logits at the routers. The head is not run at all: the losses make logits themselves, in chunks (see
`razor.distill.chunked`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from razor.distill import Batch, Needs, Shape, Trace
from razor.errors import RazorError
from razor.models.intercepted import is_checkpointed, reachable_attention
from razor.models.packed_attention import packed_attention
from razor.models.recorded_attention import recorded_attention
from razor.models.routers import recorded_routers, router_sizes
from razor.quant import QuantLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel


LAYERS = ("layers", "h")
"""What decoders call the list of their layers; GPT-2 says `h`."""


def record(model: PreTrainedModel, batch: Batch, needs: Needs | None = None) -> Trace:
    """One pass over a batch of packed documents; the model stays as it was.

    Args:
        model: a causal language model of Transformers; gradients follow the caller's mode.
        batch: see `Batch`; documents are kept apart by their position ids.
        needs: what to keep besides the last hidden state.

    Raises:
        RazorError: something is needed that this model does not show, or gradient checkpointing hides.
    """
    decoder, needs, blocks = decoder_of(model), needs or Needs(), layers_of(model)
    rows = len(batch.input_ids)
    with (
        packed_attention(decoder, blocks, batch),
        _recorded_states(blocks, needs.states) as states,
        recorded_attention(model, blocks, needs.attention) as attention,
        recorded_routers(model, blocks, needs.routers, rows) as routers,
    ):
        hidden = decoder(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
    if len(blocks) in needs.states:
        states[len(blocks)] = hidden
    head = model.get_output_embeddings()
    trace = Trace(hidden, head.weight, head.bias, states, attention, routers)
    _check(model, trace, needs)
    if isinstance(head, QuantLinear):
        trace.hidden, trace.head_weight = head.quantized_input(hidden), head.quantized_weight(hidden.dtype)
    return trace


def decoder_of(model: PreTrainedModel) -> Any:
    """The model below its output head."""
    return model.get_decoder()


def shape_of(model: PreTrainedModel) -> Shape:
    """What losses have to know of a model; it may be on the meta device."""
    config = model.config.get_text_config()
    heads, blocks = getattr(config, "num_attention_heads", 0), layers_of(model)  # a Mamba has none
    return Shape(
        name=type(model).__name__,
        layers=len(blocks),
        width=config.hidden_size,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // max(1, heads),
        attention=frozenset(reachable_attention(blocks)),
        routers=router_sizes(decoder_of(model), blocks),
    )


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


@contextmanager
def _recorded_states(blocks: nn.ModuleList, wanted: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """While it is open, passes leave hidden states but the last one in the dict given."""
    kept: dict[int, Tensor] = {}
    handles = [
        blocks[index - 1].register_forward_hook(_keep(kept, index))
        for index in wanted
        if 0 < index < len(blocks)
    ]
    if 0 in wanted:  # what goes into the first layer: some models add positions to the embedding
        handles.append(blocks[0].register_forward_pre_hook(_keep_input(kept), with_kwargs=True))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _check(model: PreTrainedModel, trace: Trace, needs: Needs) -> None:
    """Raise if something was not recorded, or without the gradient that the pass has."""
    for kind, wanted in (("attention", needs.attention), ("routers", needs.routers)):
        if missing := sorted(wanted - set(getattr(trace, kind))):
            raise RazorError(
                f"Layer {missing[0]} of {type(model).__name__} ran past what records its {kind}."
            )
    inner = [*trace.routers.values(), *(inputs.queries for inputs in trace.attention.values())]
    checkpointed = trace.hidden.requires_grad and is_checkpointed(model)
    if checkpointed and not all(tensor.requires_grad for tensor in inner):
        raise RazorError(
            "Reentrant gradient checkpointing hides attention and routers from the losses on them: "
            "enable it with use_reentrant=False."
        )


def _keep(states: dict[int, Tensor], index: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        states[index] = output[0] if isinstance(output, tuple) else output

    return hook


def _keep_input(states: dict[int, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        states[0] = inputs[0] if inputs else named["hidden_states"]

    return hook
