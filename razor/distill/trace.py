"""What a forward pass leaves behind for the losses, and what they may ask for.

A loss never runs a model and a model never knows a loss: the losses say what they need (`Needs`), the pass is
recorded as a `Trace` holding just that. Logits are not among it. They are by far the largest tensor of a
training step (tokens x vocabulary), so losses make them in chunks from the last hidden state and the head's
weight. Neither are attention weights (heads x tokens x tokens): their inputs say the same in less.

Layers are counted from 1, as their outputs stand among Transformers' hidden states: layer i turns hidden state
i-1 into hidden state i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class Needs:
    """What to record of a forward pass.

    Attributes:
        states: hidden states, by Transformers' index: 0 is the embedding output, i the output of layer i, the last
            one after the final norm.
        attention: layers whose queries, keys and values to keep.
        routers: layers whose router logits to keep.
        towers: hidden states of towers, as (name, index): 0 goes into the first layer of the tower, i comes out of
            layer i, and the last one is what the tower gives the decoder.
    """

    states: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    routers: frozenset[int] = frozenset()
    towers: frozenset[tuple[str, int]] = frozenset()

    def __or__(self, other: Needs) -> Needs:
        """Both."""
        return Needs(
            self.states | other.states,
            self.attention | other.attention,
            self.routers | other.routers,
            self.towers | other.towers,
        )


@dataclass(frozen=True)
class AttentionInputs:
    """What the attention of one layer worked on, positions already in it (after rotary embedding).

    Attributes:
        queries: [B, heads, T, head_dim].
        keys: [B, KV heads, T, head_dim], rounded if the KV cache is quantized.
        values: as `keys`.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


def places(record: Tensor | AttentionInputs) -> int:
    """How many vectors a row has in what was recorded of a layer."""
    return record.queries.shape[2] if isinstance(record, AttentionInputs) else record.shape[1]


@dataclass
class Trace:
    """A recorded forward pass.

    Attributes:
        hidden: [B, T, width] input of the output head: last hidden state after the final norm (and, in a student,
            after the head's activation quantization). Of an image [B, 1, width]: what its class is told from.
        head_weight: [vocabulary, width] weight of the output head as computed with (quantized, in a student); of an
            image classifier [classes, width].
        head_bias: [vocabulary] or None.
        states: hidden states [B, T, width] by Transformers' index; a feature map's T are its places, row by row.
        attention: attention inputs by layer, from 1.
        routers: router logits [B, T, experts] by layer, from 1.
        towers: hidden states [1, places, width] by (tower, index), the places of all images (or recordings) of the
            batch one after the other.
    """

    hidden: Tensor
    head_weight: Tensor
    head_bias: Tensor | None = None
    states: Mapping[int, Tensor] = field(default_factory=dict)
    attention: Mapping[int, AttentionInputs] = field(default_factory=dict)
    routers: Mapping[int, Tensor] = field(default_factory=dict)
    towers: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)

    def only(self, needs: Needs) -> Trace:
        """The same pass with just what is needed, so that the rest can be freed."""
        return replace(
            self,
            states={i: state for i, state in self.states.items() if i in needs.states},
            attention={i: inputs for i, inputs in self.attention.items() if i in needs.attention},
            routers={i: logits for i, logits in self.routers.items() if i in needs.routers},
            towers={place: state for place, state in self.towers.items() if place in needs.towers},
        )


@dataclass(frozen=True)
class Shape:
    """What a loss has to know of a model before it runs.

    Attributes:
        name: what to call it in an error.
        layers: number of decoder layers.
        width: of the hidden states.
        heads, kv_heads, head_dim: of attention.
        attention: layers (from 1) whose attention inputs can be recorded.
        routers: experts that each router chooses from, by layer (from 1); empty if the model has no routers.
        widths: of every hidden state, from 0, where they differ (feature maps grow wider); empty: all are `width`.
        places: of every hidden state in a row, where they differ or another model could have others; empty: tokens.
        towers: shapes of what sees and hears beside a decoder, by name.
    """

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    attention: frozenset[int] = frozenset()
    routers: Mapping[int, int] = field(default_factory=dict)
    widths: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    towers: Mapping[str, Shape] = field(default_factory=dict)

    def width_of(self, state: int) -> int:
        """Width of a hidden state."""
        return self.widths[state] if self.widths else self.width

    def places_of(self, state: int) -> int | None:
        """Vectors of a hidden state in a row; None: a token each."""
        return self.places[state] if self.places else None
