"""Images that are read when they are needed: of folders and of data sets too large for memory.

A source says how many images there are, of which class each is, and how one is opened. An image is cut to its
middle square, brought to the model's size and normalized as it is read, again in every epoch.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from razor.data.corpus import Corpus
from razor.data.images import ImageRows, ImageSource, sized
from razor.data.rows import Wanted
from razor.distill import ImageBatch
from razor.errors import RazorError

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB"}
"""PIL's name for so many channels."""
SIXTEEN = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""PIL's modes of grey images of 16 bits, which it would cut off at 255 rather than scale."""


class ReadRows(ImageRows):
    """Images by their number in a data set.

    Args:
        numbers: [n] of these images.
        classes: [n] int64.
        read: gives the normalized pixels [channels, height, width] of a number.
        identity: other for other images.
    """

    def __init__(
        self, numbers: Tensor, classes: Tensor, read: Callable[[int], Tensor], identity: str
    ) -> None:
        super().__init__(torch.empty(0), classes)
        for key, value in (("numbers", numbers), ("read", read), ("identity", identity)):
            object.__setattr__(self, key, value)

    numbers: Tensor
    read: Callable[[int], Tensor]
    identity: str

    def batch(self, indices: Iterable[int]) -> ImageBatch:
        """Some images together, read now."""
        chosen = list(indices)
        pixels = torch.stack([self.read(int(self.numbers[index])) for index in chosen])
        return ImageBatch.of(pixels, self.classes[chosen])

    def digest(self) -> str:
        """Of the data set's identity, and of which of its images these are."""
        sha = hashlib.sha256(self.identity.encode())
        for tensor in (self.numbers, self.classes):
            sha.update(tensor.numpy().tobytes())
        return sha.hexdigest()[:16]


class ReadSource(ImageSource):
    """Images that are read one by one; see `ImageSource` for `size`, `channels` and `seed`.

    Args:
        mean, deviation: of all pixels, 0 to 1.

    Raises:
        RazorError: a deviation that is not positive.
    """

    def __init__(self, size: int, channels: int, seed: int, mean: float, deviation: float) -> None:
        super().__init__(size, channels, seed)
        if not deviation > 0:
            raise RazorError(f"data.source.deviation={deviation} must be more than 0.")
        self.mean, self.deviation = mean, deviation

    @abstractmethod
    def labelled(self) -> tuple[list[int], Callable[[int], Image], str]:
        """The class of every image, those of the test part (`tests` of them) last; what opens one; their identity.

        Raises:
            RazorError: they cannot be read.
        """

    def images(self) -> tuple[Tensor, Tensor]:
        """All of them in memory; `corpus` does without."""
        labels, opened, _ = self.labelled()
        return torch.stack([self._raw(opened(i)) for i in range(len(labels))]), torch.tensor(labels)

    def numbered(self, labels: list[int], names: tuple[str, ...] | None) -> list[int]:
        """The same classes by the numbers of a model that calls them so; here they have its numbers already."""
        return labels

    def corpus(self, wanted: Wanted) -> Corpus:
        """See `ImageSource`; nothing is read yet."""
        labels, opened, identity = self.labelled()
        count = self.classes
        if strange := [label for label in labels if not 0 <= label < count]:
            raise RazorError(f"An image has class {strange[0]}; data.source.classes={count}.")
        classes = torch.tensor(self.numbered(labels, wanted.class_names), dtype=torch.int64)

        def read(number: int) -> Tensor:
            return (self._raw(opened(number)) - self.mean) / self.deviation

        scored, trained = self.split(len(labels), wanted.held_out)
        sizes = f"{identity} {self.size} {self.channels} {self.mean} {self.deviation}"
        return Corpus(*(ReadRows(part, classes[part], read, sizes) for part in (trained, scored)))

    def _raw(self, image: Any) -> Tensor:
        """The middle square of an image of PIL, upright, [channels, size, size] from 0 to 1."""
        from PIL import ImageOps

        name = getattr(image, "filename", "") or "an image"
        image = ImageOps.exif_transpose(image)
        side, (width, height) = min(image.size), image.size
        left, top = (width - side) // 2, (height - side) // 2
        array = _brightness(image.crop((left, top, left + side, top + side)), MODES[self.channels], name)
        pixels = torch.from_numpy(array.reshape(side, side, -1)).permute(2, 0, 1)
        return sized(pixels.unsqueeze(0), self.size, self.channels)[0]


def _brightness(image: Any, mode: str, name: str) -> NDArray[np.float32]:
    """[height, width] or [height, width, 3] from 0 to 1; grey images of 16 bits stay grey.

    Raises:
        RazorError: its numbers have no brightest one that the format states.
    """
    if image.mode in SIXTEEN:
        array = np.asarray(image).astype(np.float32) / np.float32(65535)
        if array.min() >= 0 and array.max() <= 1:
            return array
    if image.mode in ("F", *SIXTEEN):
        raise RazorError(
            f"'{name}' holds numbers of PIL's mode {image.mode} that are not those of 16 bits: save it with 8 or "
            "16 bits a pixel."
        )
    return np.asarray(image.convert(mode), dtype=np.float32) / np.float32(255)
