"""What a forward pass leaves behind for the losses.

A loss never runs a model and a model never knows a loss: the pass is recorded as a `Trace`, holding just
what the losses asked for. Logits are not among it. They are by far the largest tensor of a training step
(tokens x vocabulary), so losses make them in chunks from the last hidden state and the head's weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Trace:
    """A recorded forward pass.

    Attributes:
        hidden: [B, T, width] input of the output head: last hidden state after the final norm (and, in a student,
            after the head's activation quantization).
        head_weight: [vocabulary, width] weight of the output head as computed with (quantized, in a student).
        head_bias: [vocabulary] or None.
        states: hidden states [B, T, width] by Transformers' index: 0 is the embedding output, i the output of
            layer i, the last one after the final norm.
    """

    hidden: Tensor
    head_weight: Tensor
    head_bias: Tensor | None = None
    states: Mapping[int, Tensor] = field(default_factory=dict)
