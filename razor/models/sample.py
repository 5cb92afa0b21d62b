"""Something to show any model, for comparing two of them: a few tokens, or an image of noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from razor.models.image_record import image_size_of, pixels_for
from razor.models.task import task_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TOKENS, IMAGES = 64, 4


def sample_inputs(model: nn.Module, config: PretrainedConfig, tokens: int = TOKENS) -> dict[str, Any]:
    """What to call a model with: its first tokens in their order, or a few seeded images.

    Args:
        model: that will read them; of images it gives the dtype.
        config: of the model.
        tokens: how many.
    """
    if task_of(config) == "images":
        noise = torch.randn(IMAGES, *image_size_of(config), generator=torch.Generator().manual_seed(0))
        return {"pixel_values": pixels_for(model, noise)}
    vocabulary = config.get_text_config().vocab_size
    return {"input_ids": torch.arange(tokens).unsqueeze(0) % vocabulary, "use_cache": False}
