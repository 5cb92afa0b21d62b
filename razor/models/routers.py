"""Catch the logits of a mixture of experts' routers.

Transformers itself says where they are: a decoder's `can_record_outputs` names the class of its routers and which
of their outputs are the logits. A hook on those modules keeps them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.utils.output_capturing import OutputRecorder

from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBABILITIES = ("Gemma4TextRouter", "DiffusionGemmaTextRouter")
"""Routers that hand out probabilities under the name of logits."""


def routers_of(decoder: PreTrainedModel, blocks: nn.ModuleList) -> dict[int, tuple[nn.Module, int]]:
    """(module, which of its outputs are the logits), by layer from 1, where a layer has exactly one router."""
    told: Any = getattr(decoder, "can_record_outputs", {}).get("router_logits", [])
    places = [
        place for place in (told if isinstance(told, list) else [told]) if isinstance(place, OutputRecorder)
    ]
    found: dict[int, tuple[nn.Module, int]] = {}
    for layer, block in enumerate(blocks, start=1):
        matches = [
            (module, place.index)
            for place in places
            for module in block.modules()
            if place.target_class is not None and isinstance(module, place.target_class)
        ]
        if len(matches) == 1 and _experts(matches[0][0]) is not None:
            found |= {layer: matches[0]}
    return found


def router_sizes(decoder: PreTrainedModel, blocks: nn.ModuleList) -> dict[int, int]:
    """Experts that the router of a layer chooses from, by layer from 1; models on the meta device will do."""
    return {layer: _experts(router) or 0 for layer, (router, _) in routers_of(decoder, blocks).items()}


@contextmanager
def recorded_routers(
    model: PreTrainedModel, blocks: nn.ModuleList, layers: Collection[int], rows: int
) -> Iterator[dict[int, Tensor]]:
    """While it is open, passes of `model` leave router logits [rows, T, experts] of `layers` in the dict given.

    Raises:
        RazorError: a layer has no router.
    """
    kept: dict[int, Tensor] = {}
    found = routers_of(model.get_decoder(), blocks) if layers else {}
    if missing := sorted(set(layers) - set(found)):
        raise RazorError(
            f"Layer {missing[0]} of {type(model).__name__} has no router whose logits can be recorded."
        )
    handles = [
        found[layer][0].register_forward_hook(_keep(kept, layer, found[layer][1], rows)) for layer in layers
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _experts(router: Any) -> int | None:
    if any(kind.__name__ in PROBABILITIES for kind in type(router).__mro__):
        return None
    experts = getattr(router, "num_experts", None)
    if experts is None and isinstance(getattr(router, "layer", None), nn.Linear):  # DBRX
        experts = router.layer.out_features
    return experts


def _keep(kept: dict[int, Tensor], layer: int, index: int, rows: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        logits = output[index] if isinstance(output, tuple) else output
        if logits.shape[-1] != _experts(module):
            raise RazorError(
                f"The router of layer {layer} ({type(module).__name__}) gives out {logits.shape[-1]} logits for "
                f"{_experts(module)} experts, which Razor does not understand."
            )
        kept[layer] = logits.reshape(rows, -1, logits.shape[-1])

    return hook
