"""A folder of images with a folder for each class, as ImageNet and many others come.

    FOLDER/cat/1.jpg  FOLDER/cat/2.png  FOLDER/dog/1.jpg ...

Classes are numbered in the order of their names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from razor.data.image_files import ReadSource
from razor.errors import RazorError
from razor.storage import digest

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")


class ImageFolder(ReadSource):
    """Images of a local folder.

    Args:
        path: the folder of training images.
        test: another one of the same classes, of which held-out images are; None: any image may be held out.
        size, channels, mean, deviation, seed: see `ReadSource`.
    """

    def __init__(
        self,
        path: str,
        size: int,
        channels: int = 3,
        test: str | None = None,
        mean: float = 0.45,
        deviation: float = 0.27,
        seed: int = 0,
    ) -> None:
        super().__init__(size, channels, seed, mean, deviation)
        self.path, self.test = path, test

    @property
    def classes(self) -> int:  # type: ignore[override]
        """How many folders there are."""
        return len(self._names())

    def check(self) -> None:
        """Raise RazorError if a folder is not there, has no classes or others than the first."""
        names = self._names()
        if self.test is not None and (other := set(_folders(self.test, "test")) - set(names)):
            raise RazorError(
                f"data.source.test='{self.test}' has a class '{min(other)}' that '{self.path}' lacks."
            )

    def labelled(self) -> tuple[list[int], Callable[[int], Image], str]:
        """See `ReadSource`."""
        numbers = {name: number for number, name in enumerate(self._names())}
        files = _files(self.path, "path")
        tests = [] if self.test is None else _files(self.test, "test")
        self.tests = len(tests)
        files += tests
        state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        labels = [numbers[file.parent.name] for file in files]
        return labels, partial(_opened, files), digest(state)

    def _names(self) -> list[str]:
        return _folders(self.path, "path")


def _folders(path: str, key: str) -> list[str]:
    if not Path(path).is_dir():
        raise RazorError(f"data.source.{key}='{path}' is no folder.")
    names = sorted(folder.name for folder in Path(path).iterdir() if folder.is_dir())
    if len(names) < 2:
        raise RazorError(
            f"data.source.{key}='{path}' has {len(names)} folders: one for each class, two at least."
        )
    return names


def _files(path: str, key: str) -> list[Path]:
    files = [
        file
        for name in _folders(path, key)
        for file in sorted((Path(path) / name).iterdir())
        if file.suffix.lower() in ENDINGS
    ]
    if not files:
        raise RazorError(f"data.source.{key}='{path}' has no images ({', '.join(ENDINGS)}) in its folders.")
    return files


def _opened(files: list[Path], number: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(files[number]) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError) as error:
        raise RazorError(f"'{files[number]}' is no image that can be read ({error}).") from error
