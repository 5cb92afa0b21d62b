"""A micro-batch of images, each with one label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from razor.distill.batch import Places, Samples
from razor.distill.targets import Targets


@dataclass
class ImageBatch(Samples):
    """Images and their classes: one image is one sample with one prediction.

    Attributes:
        pixel_values: [B, channels, height, width] fp32, normalized as the model wants them.
        labels: [B, 1] int64 classes.
        documents: [B, 1] int64, 0 to B - 1.
        share, targets: see `Samples`.
    """

    pixel_values: Tensor
    labels: Tensor
    documents: Tensor
    share: float = 1.0
    targets: Targets | None = None
    unit: ClassVar[str] = "images"

    @classmethod
    def of(cls, pixel_values: Tensor, classes: Tensor) -> ImageBatch:
        """From pixels [B, channels, height, width] and classes [B]."""
        numbers = torch.arange(len(classes), device=classes.device)
        return cls(pixel_values, classes.long().unsqueeze(1), numbers.unsqueeze(1))

    def inside(self, places: int) -> FeaturePlaces:
        """Every place of a feature map counts alike, and sees all the others of its image."""
        return FeaturePlaces(self.documents.expand(-1, places), self.documents.expand(-1, places))

    def examples(self, state: Tensor) -> Tensor:
        """An image each, all its places side by side."""
        return state.flatten(1)


class FeaturePlaces(Places):
    """Images as a layer sees them: [B, places], all of them valid."""

    def inside(self, places: int) -> FeaturePlaces:
        """Itself."""
        return self

    def examples(self, state: Tensor) -> Tensor:
        """An image each."""
        return state.flatten(1)
