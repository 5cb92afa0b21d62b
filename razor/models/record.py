"""Run a model and record what the losses asked for.

Hidden states are caught by hooks on just the layers wanted, attention inputs where attention is called, router
logits at the routers. The head is not run at all: the losses make logits themselves, in chunks (see
`razor.distill.chunked`). How image classifiers are run is said by `image_record`, what towers leave by
`tower_record`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from razor.distill import Batch, ImageBatch, MediaBatch, Needs, Samples, Shape, Trace
from razor.errors import RazorError
from razor.models.image_record import image_shape, pixels_for, record_images
from razor.models.intercepted import is_checkpointed, reachable_attention
from razor.models.packed_attention import packed_attention
from razor.models.recorded_attention import recorded_attention
from razor.models.routers import recorded_routers, router_sizes
from razor.models.task import Task, task_of
from razor.models.tower_record import media_inputs, recorded_towers, tower_shapes
from razor.quant import QuantLinear
from razor.quant.anatomy import body_of, head_of, layers_of, reads_images

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def record(model: PreTrainedModel, batch: Samples, needs: Needs | None = None) -> Trace:
    """One pass over a batch of packed documents, of images, or of both; the model stays as it was.

    Args:
        model: a causal language model, with towers or without, or an image classifier of Transformers; gradients
            follow the caller's mode.
        batch: see `Batch`, whose documents are kept apart by their position ids, `MediaBatch` and `ImageBatch`.
        needs: what to keep besides the last hidden state.

    Raises:
        RazorError: a batch of another kind than the model reads; something is needed that this model does not
            show, or gradient checkpointing hides.
    """
    check_reads(model, batch)
    if isinstance(batch, ImageBatch):
        return record_images(model, batch, needs or Needs())
    assert isinstance(batch, Batch)
    return _record_tokens(model, batch, needs or Needs())


def check_reads(model: PreTrainedModel, batch: Samples) -> None:
    """Raise RazorError unless a model reads what a batch is made of: tokens, pixels, or tokens and media."""
    reads: Task = "images" if reads_images(model) else task_of(model.config)
    kinds: dict[type, Task] = {ImageBatch: "images", MediaBatch: "media"}
    given = kinds.get(type(batch), "text")
    if reads != given:
        raise RazorError(f"{type(model).__name__} reads {reads}, and the batch is of {given}.")


def inputs_of(model: PreTrainedModel, batch: Samples) -> dict[str, Any]:
    """What to call a model with, so that it gives the logits of a batch: `model(**inputs_of(model, batch))`."""
    if isinstance(batch, ImageBatch):
        return {"pixel_values": pixels_for(model, batch.pixel_values)}
    if isinstance(batch, MediaBatch):
        return media_inputs(model, batch)
    assert isinstance(batch, Batch)
    return {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}


def _record_tokens(model: PreTrainedModel, batch: Batch, needs: Needs) -> Trace:
    decoder, blocks, media = decoder_of(model), layers_of(model), isinstance(batch, MediaBatch)
    with ExitStack() as stack:
        if not media:  # rows of media hold a document each
            stack.enter_context(packed_attention(decoder, blocks, batch))
        states = stack.enter_context(_recorded_states(blocks, needs.states))
        attention = stack.enter_context(recorded_attention(model, blocks, needs.attention))
        rows = len(batch.input_ids)
        routers = stack.enter_context(recorded_routers(model, blocks, needs.routers, rows))
        towers = stack.enter_context(recorded_towers(model, needs.towers))
        body = model.base_model if media else decoder
        hidden = body(**inputs_of(model, batch)).last_hidden_state
    if len(blocks) in needs.states:
        states[len(blocks)] = hidden
    head = head_of(model)
    trace = Trace(hidden, head.weight, head.bias, states, attention, routers, towers)
    _check(model, trace, needs)
    if isinstance(head, QuantLinear):
        trace.hidden, trace.head_weight = head.quantized_input(hidden), head.quantized_weight(hidden.dtype)
    return trace


def decoder_of(model: PreTrainedModel) -> Any:
    """The model below its output head."""
    return body_of(model)


def shape_of(model: PreTrainedModel) -> Shape:
    """What losses have to know of a model; it may be on the meta device."""
    if reads_images(model):
        return image_shape(model)
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
        towers=tower_shapes(model),
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
