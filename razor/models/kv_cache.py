"""A key-value cache that really is small: it stores codes.

In training and scoring, keys and values are rounded inside the attention function (see
`razor.models.attention`) and nothing is saved. At inference the same rounding can pay: `QuantCache` is a cache
of Transformers whose layers keep the packed codes and the scales of every token, and decode them when
attention asks. It hands out quantized states from the first token on, prefill included, so what a text scores
and what a conversation computes are the same numbers; keys and values are quantized once, by the cache, and
the attention function leaves them alone.

The cost: all codes of a layer are decoded at every step, one layer at a time.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, DynamicCache

from razor.errors import RazorError
from razor.models.kv_layers import StoredLayer, stored_layer
from razor.models.packed_states import PackedStates
from razor.quant import Format

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


class QuantCache(Cache):
    """Keys and values of all layers as codes; goes wherever a `DynamicCache` goes.

    Layers with a sliding window keep only the window; layers without keys and values (linear attention) keep
    what Transformers' own cache keeps for them. No gradient flows through it.

    Args:
        config: of the model.
        format: of keys (after rotary embedding) and values.

    Raises:
        RazorError: the model has layers whose state is neither keys and values nor left as it is.
    """

    def __init__(self, config: PretrainedConfig, format: Format) -> None:
        self.format = format
        # Transformers knows which layer of a model needs which kind of cache
        plain = DynamicCache(config=config.get_text_config(decoder=True)).layers
        super().__init__(layers=[stored_layer(layer, format) for layer in plain])

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales of all tokens held."""
        return sum(states.nbytes for states in self._states())

    @property
    def reserved(self) -> int:
        """Bytes of memory taken, room for further tokens included."""
        return sum(states.reserved for states in self._states())

    def _states(self) -> list[PackedStates]:
        return [states for layer in self.layers if isinstance(layer, StoredLayer) for states in layer.states]


def quant_cache(model: PreTrainedModel) -> QuantCache:
    """An empty cache in the format that `quantize_kv` gave to `model`.

    Raises:
        RazorError: the model's keys and values are not quantized.
    """
    formats = [m.kv_format for m in model.modules() if isinstance(getattr(m, "kv_format", None), Format)]
    if not formats:
        raise RazorError(
            f"{type(model).__name__} has no KV format to store its cache in: quantize it by a plan with one "
            "(quant.kv_cache=...), or make QuantCache(model.config, format)."
        )
    return QuantCache(model.config, formats[0])  # type: ignore[arg-type]


def use_in_generate(model: PreTrainedModel) -> None:
    """Make `QuantCache` the cache that `model.generate()` makes when it is given none.

    Where that cannot be (see `QuantCache`), generation goes on computing the same numbers on a plain cache.
    """
    try:
        quant_cache(model)
    except RazorError:
        return
    # A method of this one object, which deepcopy binds to the copy.
    if hasattr(type(model), "_prepare_cache_for_generation"):
        method: Any = types.MethodType(_prepare_cache_for_generation, model)
        model._prepare_cache_for_generation = method


def _prepare_cache_for_generation(
    self: Any, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any, **more: Any
) -> None:
    wanted = (
        model_kwargs.get("past_key_values") is None
        and generation_config.use_cache is not False
        and generation_config.cache_implementation in (None, "dynamic")
    )
    if not wanted:
        type(self)._prepare_cache_for_generation(self, generation_config, model_kwargs, *rest, **more)
        return
    cache = model_kwargs["past_key_values"] = quant_cache(self)
    if generation_config.is_assistant:  # whose guesses may have to be taken back
        cache.activate_past_recording()
