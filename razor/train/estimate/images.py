"""What is known of an image classifier from its skeleton: operations of an image, and the size of what it records.

In an estimate an image is one token: its products are counted by running the model without numbers, since a
convolution multiplies its parameters at every place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from razor.models import shape_of
from razor.models.image_record import pixels_for
from razor.quant.anatomy import entrance_of, head_of
from razor.train.estimate.network import Network, counted

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def image_network(skeleton: PreTrainedModel, image: tuple[int, ...]) -> Network:
    """Count a classifier that reads images [channels, height, width].

    `matrices` are the multiplications of one image outside the head, `width` the numbers of its largest hidden
    state, `attention` those of a layer's queries, keys and values; the operations inside attention are among the
    multiplications, so `heads` is 0.
    """
    shape, head = shape_of(skeleton), head_of(skeleton)
    first: Any = entrance_of(skeleton)
    training = skeleton.training
    skeleton.eval()  # one image has no batch to be normalized by
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        skeleton(pixel_values=pixels_for(skeleton, torch.zeros(1, *image, device="meta")))
    skeleton.train(training)
    return Network(
        **counted(skeleton),
        embedding=sum(part.weight.numel() for part in first),
        matrices=max(0, counter.get_total_flops() // 2 - head.weight.numel()),
        width=max(width * places for width, places in zip(shape.widths, shape.places, strict=True)),
        vocabulary=len(head.weight),
        heads=0,
        attention=3 * shape.heads * shape.head_dim * max(shape.places),
    )
