"""Images with classes: rows of one image each, and what a source of them is.

An image is a sample with one prediction, its class. A row holds one image, so that micro-batches, their order,
shares and resuming are those of text (`steps.py`). Pixels lie in memory, normalized once.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from razor.data.corpus import Corpus
from razor.data.rows import Wanted
from razor.data.sources.base import DataSource
from razor.distill import ImageBatch
from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from razor.models import Task


@dataclass(frozen=True)
class ImageRows:
    """Images to train on or to score on.

    Attributes:
        pixels: [n, channels, height, width] fp32, normalized.
        classes: [n] int64.
    """

    pixels: Tensor
    classes: Tensor
    bucketed: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.classes)

    def batch(self, indices: Iterable[int]) -> ImageBatch:
        """Some images together."""
        chosen = torch.tensor(list(indices))
        return ImageBatch.of(self.pixels[chosen], self.classes[chosen])

    def batches(self, rows_per_batch: int) -> Iterator[ImageBatch]:
        """All images in order, a few at a time."""
        for start in range(0, len(self), rows_per_batch):
            yield self.batch(range(start, min(start + rows_per_batch, len(self))))

    def documents_in(self, index: int) -> int:
        """One image."""
        return 1

    def lengths(self) -> NDArray[np.int32]:
        """One image each."""
        return np.ones(len(self), dtype=np.int32)

    @property
    def tokens(self) -> int:
        """The number of images."""
        return len(self)

    def digest(self) -> str:
        """Of pixels and classes."""
        sha = hashlib.sha256(str(tuple(self.pixels.shape)).encode())
        for tensor in (self.pixels, self.classes):
            sha.update(tensor.numpy().tobytes())
        return sha.hexdigest()[:16]


class ImageSource(DataSource):
    """Where images come from; a subclass says which there are.

    Args:
        size: height and width that they are brought to (bilinear).
        channels: of the pixels: 1 for grey, or 3, of which grey images get three that are alike.
        seed: of the held-out choice; not the run's, so that runs with other seeds score the same images and share a
            teacher that has never seen them.

    Attributes:
        classes: how many there are.
        class_names: what they are called, by number; None if nobody knows.
        mean, deviation: of all pixels (0 to 1), by which they are normalized.
        tests: the last so many images are the data set's own test part: held-out images come from there, and none
            of them is trained on. 0: it has none, and any image may be held out.

    Raises:
        RazorError: a size, channels or a seed out of range.
    """

    task: ClassVar[Task] = "images"
    unit = "images"
    classes: int
    class_names: tuple[str, ...] | None = None
    mean: float
    deviation: float
    tests: int = 0

    def __init__(self, size: int, channels: int = 1, seed: int = 0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise RazorError(f"data.source.size={size} must be a whole number of pixels.")
        if channels not in (1, 3):
            raise RazorError(f"data.source.channels={channels}. Choices: 1, 3.")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise RazorError(f"data.source.seed={seed} must be a whole number of at least 0.")
        self.size, self.channels, self.seed = size, channels, seed

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.channels, self.size, self.size

    def class_names_for(self, config: PretrainedConfig) -> tuple[str, ...] | None:
        """The model's own names, for they decide (see `ImageFolder`); else the source's."""
        from razor.models.task import class_names_of

        return class_names_of(config) or self.class_names

    def described(self, config: PretrainedConfig) -> dict[str, str]:
        """See `DataSource`."""
        names = self.class_names_for(config)
        shape = " x ".join(map(str, self.shape))
        told = {"size": shape, "mean": f"{self.mean:g}", "deviation": f"{self.deviation:g}"}
        return told if names is None else told | {"classes": ", ".join(names)}

    @abstractmethod
    def images(self) -> tuple[Tensor, Tensor]:
        """All images in a fixed order, those of the test part last.

        Returns:
            Pixels [n, height, width] or [n, channels, height, width], 0 to 1, and classes [n].
        """

    def check_rows(self, config: PretrainedConfig, length: int, longest: int | None) -> None:
        """See `DataSource`.

        Raises:
            RazorError: images of another size or with other channels than the model reads, patches that do not
                divide them, or other classes.
        """
        name, size = config.model_type, getattr(config, "image_size", None)
        if size is not None and size not in (self.size, [self.size] * 2, (self.size, self.size)):
            raise RazorError(
                f"data.source.size={self.size}, but this {name} reads images of {size} "
                "(model.architecture.image_size)."
            )
        patch = getattr(config, "patch_size", None)
        if isinstance(patch, int) and self.size % patch:
            raise RazorError(
                f"data.source.size={self.size} is no multiple of the patches of this {name}, {patch} pixels wide "
                "(model.architecture.patch_size)."
            )
        if getattr(config, "num_channels", self.channels) != self.channels:
            raise RazorError(
                f"data.source.channels={self.channels}, but this {name} reads {config.num_channels} "
                "(model.architecture.num_channels)."
            )
        if config.num_labels != self.classes:
            raise RazorError(
                f"this {name} tells {config.num_labels} classes apart, the data has {self.classes} "
                f"(model.architecture.num_labels={self.classes})."
            )

    def corpus(self, wanted: Wanted) -> Corpus:
        """Held-out images chosen by the source's seed, the others to train on."""
        pixels, classes = self.images()
        pixels = pixels if pixels.ndim == 4 else pixels.unsqueeze(1)
        self._check_images(pixels, classes)
        scored, trained = self.split(len(classes), wanted.held_out)
        pixels = sized(pixels, self.size, self.channels)
        pixels = (pixels - self.mean) / self.deviation
        return Corpus(
            train=ImageRows(pixels[trained], classes[trained]),
            held_out=ImageRows(pixels[scored], classes[scored]),
        )

    def _check_images(self, pixels: Tensor, classes: Tensor) -> None:
        """Raise RazorError for images that are not as `images` has to give them."""
        what = f"{type(self).__name__}.images()"
        if pixels.ndim != 4 or classes.shape != pixels.shape[:1]:
            raise RazorError(
                f"{what} gives pixels {list(pixels.shape)} and classes {list(classes.shape)}: [n, height, width] "
                "or [n, channels, height, width], and [n]."
            )
        if pixels.shape[1] not in (1, self.channels):
            raise RazorError(
                f"{what} gives images of {pixels.shape[1]} channels; data.source.channels={self.channels}, and 1 "
                "fits too."
            )
        if not pixels.is_floating_point() or not len(pixels):
            raise RazorError(
                f"{what} gives {len(pixels)} images of {pixels.dtype}: floating-point numbers from 0 to 1."
            )
        least, most = pixels.min().item(), pixels.max().item()
        if not (least >= 0 and most <= 1):  # not a number is neither
            raise RazorError(f"{what} gives pixels from {least:g} to {most:g}: they are to be from 0 to 1.")
        if classes.is_floating_point() or not 0 <= classes.min() <= classes.max() < self.classes:
            raise RazorError(
                f"{what} gives classes from {classes.min():g} to {classes.max():g} ({classes.dtype}), and there "
                f"are {self.classes}: whole numbers from 0 to {self.classes - 1}."
            )

    def split(self, count: int, held_out: int) -> tuple[Tensor, Tensor]:
        """Numbers of the images to score on and of those to train on, of so many.

        Raises:
            RazorError: nothing is left to train on, or the test part is smaller.
        """
        if self.tests and held_out > self.tests:
            raise RazorError(f"data.held_out={held_out}, and the test part has {self.tests} images.")
        rest = count - self.tests
        if rest < 1 or (held_out >= count and not self.tests):
            raise RazorError(f"data.held_out={held_out} of {count} images leaves none to train on.")
        draw = np.random.default_rng(self.seed)
        if self.tests:
            scored = torch.from_numpy(draw.permutation(self.tests))[:held_out] + rest
            return scored, torch.from_numpy(draw.permutation(rest))
        order = torch.from_numpy(draw.permutation(count))
        return order[:held_out], order[held_out:]


def sized(pixels: Tensor, size: int, channels: int) -> Tensor:
    """[n, channels, height, width] -> the same in another size, grey made into colours that are alike."""
    if pixels.shape[2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels.repeat(1, channels, 1, 1) if pixels.shape[1] == 1 < channels else pixels
