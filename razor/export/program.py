"""A classifier as a program of `torch.export`: its operators in order, without the Python that called them.

    program = torch.export.load("program.pt2").module()
    logits = program(pixel_values)

One file that holds weights and graph, for whoever compiles for a device or serves without Transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.models.image_record import image_size_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

PROGRAM = "program.pt2"


class Logits(nn.Module):
    """A classifier that gives its logits alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, channels, height, width] -> [B, classes]."""
        return self.model(pixel_values=pixel_values).logits


def some_pixels(config: PretrainedConfig) -> tuple[Tensor, Any]:
    """Two images to trace a classifier with, and that their number may be another."""
    return torch.zeros(2, *image_size_of(config)), ({0: torch.export.Dim("images")},)


def write_program(model: PreTrainedModel, config: PretrainedConfig, path: Path) -> None:
    """Write a classifier as a program, for any number of images."""
    pixels, dynamic = some_pixels(config)
    program = torch.export.export(Logits(model.eval()), (pixels.to(model.dtype),), dynamic_shapes=dynamic)
    torch.export.save(program, path)


def read_program(path: Path) -> nn.Module:
    """Read it back."""
    return torch.export.load(path).module()
