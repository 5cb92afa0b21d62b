"""What a model that sees or hears is called with, and what its towers leave behind.

The model runs whole below its head, as anybody would call it: its towers first, whose vectors take the place of the
tokens held free for them, then the decoder. Where each token stands in an image is worked out by the model itself.
A tower reads all images (or recordings) of a batch at once, so what a layer of it leaves is recorded as one row of
places.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from razor.distill import MediaBatch, Shape
from razor.errors import RazorError
from razor.quant.anatomy import tower_layers, towers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def media_inputs(model: PreTrainedModel, batch: MediaBatch) -> dict[str, Any]:
    """What to call a model, or its body, with."""
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": (batch.documents >= 0).long(),
        "use_cache": False,
        **batch.media,
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        given["mm_token_type_ids"] = batch.kinds
    return given


def tower_shapes(model: PreTrainedModel) -> dict[str, Shape]:
    """What losses have to know of the towers of a model that are built as Razor knows; on the meta device, too.

    Their attention is called once for each image, so its inputs are not recorded.
    """
    found = {}
    for name, tower in towers_of(model).items():
        config: Any = tower.config
        layers, width, given = tower_layers(tower), getattr(config, "hidden_size", None), _given_width(tower)
        if layers is None or width is None or given is None:
            continue
        heads = getattr(config, "num_attention_heads", 0)
        found[name] = Shape(
            name=f"the {name} tower of {type(model).__name__}",
            layers=len(layers),
            width=width,
            heads=heads,
            kv_heads=heads,
            head_dim=width // max(1, heads),
            widths=(*[width] * len(layers), given),
        )
    return found


@contextmanager
def recorded_towers(
    model: PreTrainedModel, wanted: Collection[tuple[str, int]]
) -> Iterator[dict[tuple[str, int], Tensor]]:
    """While it is open, passes leave hidden states [1, places, width] of towers in the dict given.

    Raises:
        RazorError: in a pass, if a tower runs twice in it.
    """
    kept: dict[tuple[str, int], Tensor] = {}
    towers, handles = towers_of(model) if wanted else {}, []
    for name, index in wanted:
        tower, layers = towers[name], tower_layers(towers[name])
        assert layers is not None  # or it has no shape, and no loss could ask
        keep = _keep(kept, name, index)
        if index == 0:
            handles.append(layers[0].register_forward_pre_hook(keep, with_kwargs=True))
        elif index < len(layers):
            handles.append(layers[index - 1].register_forward_hook(keep))
        else:
            handles.append(tower.register_forward_hook(keep))
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: dict[tuple[str, int], Tensor], name: str, index: int) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], found: Any) -> None:
        if (name, index) in kept:
            raise RazorError(
                f"The {name} tower runs twice in a pass (images and videos together?), which losses on towers do "
                "not follow."
            )
        if index == 0:
            state = inputs[0] if inputs else found["hidden_states"]
        elif hasattr(found, "last_hidden_state"):
            state, merged = found.last_hidden_state, getattr(found, "pooler_output", None)
            # places put together, not an image in one vector
            if merged is not None and merged.ndim == state.ndim:
                state = merged
        else:
            state = found[0] if isinstance(found, tuple) else found
        kept[name, index] = state.reshape(1, -1, state.shape[-1])

    return hook


def _given_width(tower: nn.Module) -> int | None:
    """Width of what a tower gives the decoder: its last linear layer's."""
    linear = [module for module in tower.modules() if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else None
