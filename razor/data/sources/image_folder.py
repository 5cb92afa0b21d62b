"""A folder of images with a folder for each class, as ImageNet and many others come.

    FOLDER/cat/1.jpg  FOLDER/cat/2.png  FOLDER/dog/1.jpg ...

Classes are numbered in the order of their names; or, where a model of the hub calls its classes by these names,
in the model's order. Names that begin with a dot or `__` are no classes and no images, and neither files beside
the class folders nor folders inside them are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from razor.data.image_files import ReadSource
from razor.errors import RazorError
from razor.storage import digest

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PretrainedConfig

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")


class ImageFolder(ReadSource):
    """Images of a local folder.

    Args:
        path: the folder of training images.
        test: another one of the same classes, of which held-out images are; None: any image may be held out.
        size, channels, mean, deviation, seed: see `ReadSource`.
        by_name: whether a model that names its classes decides their order; false: the order of the folders' names
            is the model's, whatever it calls them.

    Raises:
        RazorError: `by_name` is not true or false.
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
        by_name: bool = True,
    ) -> None:
        super().__init__(size, channels, seed, mean, deviation)
        if not isinstance(by_name, bool):
            raise RazorError(f"data.source.by_name={by_name} must be true or false.")
        self.path, self.test, self.by_name = path, test, by_name

    @property
    def classes(self) -> int:  # type: ignore[override]
        """How many folders there are."""
        return len(self._names)

    @property
    def class_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Of the folders."""
        return tuple(self._names)

    def check(self) -> None:
        """Raise RazorError if a folder is not there, has no classes, empty ones or others than the first."""
        names = self._names
        if self.test is not None:
            if Path(self.test).resolve() == Path(self.path).resolve():
                raise RazorError(
                    f"data.source.test='{self.test}' is data.source.path: give a folder of other images, or "
                    "test=null to hold some of path out."
                )
            if other := set(_folders(self.test, "test")) - set(names):
                raise RazorError(
                    f"data.source.test='{self.test}' has a class '{min(other)}' that '{self.path}' lacks."
                )
            _check_filled(self.test, "test", _folders(self.test, "test"))
        _check_filled(self.path, "path", names)

    def check_rows(self, config: PretrainedConfig, length: int, longest: int | None) -> None:
        """As `ImageSource.check_rows`.

        Raises:
            RazorError: also if the model calls its classes otherwise.
        """
        from razor.models.task import class_names_of

        super().check_rows(config, length, longest)
        self._numbers(class_names_of(config))

    def numbered(self, labels: list[int], names: tuple[str, ...] | None) -> list[int]:
        """See `ReadSource`."""
        numbers = self._numbers(names)
        return [numbers[label] for label in labels]

    def _numbers(self, names: tuple[str, ...] | None) -> list[int]:
        """What a model that calls its classes so, or knows no names, calls the class of each folder."""
        if names is None or not self.by_name:
            return list(range(len(self._names)))
        if set(names) != set(self._names):
            own = min(set(self._names) - set(names) or self._names)
            raise RazorError(
                f"data.source.path='{self.path}' has a class '{own}', and the model calls its classes "
                f"{', '.join(map(repr, names[:4]))}{' ...' if len(names) > 4 else ''}: name the folders so, or, if "
                "the order of their names is the model's, data.source.by_name=false."
            )
        return [names.index(name) for name in self._names]

    def labelled(self) -> tuple[list[int], Callable[[int], Image], str]:
        """See `ReadSource`."""
        numbers = {name: number for number, name in enumerate(self._names)}
        files = _files(self.path, self._names)
        tests = [] if self.test is None else _files(self.test, _folders(self.test, "test"))
        self.tests = len(tests)
        files += tests
        state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        labels = [numbers[file.parent.name] for file in files]
        return labels, partial(_opened, files), digest(state)

    @cached_property
    def _names(self) -> list[str]:
        """Of the classes: listed once, for a folder on a network disk takes its time."""
        return _folders(self.path, "path")


def _plain(path: Path) -> bool:
    return not path.name.startswith((".", "__"))


def _folders(path: str, key: str) -> list[str]:
    if not Path(path).is_dir():
        raise RazorError(f"data.source.{key}='{path}' is no folder.")
    names = sorted(folder.name for folder in Path(path).iterdir() if folder.is_dir() and _plain(folder))
    if len(names) < 2:
        raise RazorError(
            f"data.source.{key}='{path}' has {len(names)} folders: one for each class, two at least."
        )
    return names


def _images(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and _plain(file))


def _check_filled(path: str, key: str, names: list[str]) -> None:
    for name in names:
        if next(_images(Path(path) / name), None) is None:
            raise RazorError(
                f"data.source.{key}='{path}': the folder of class '{name}' has no images ({', '.join(ENDINGS)})."
            )


def _files(path: str, names: list[str]) -> list[Path]:
    return [file for name in names for file in sorted(_images(Path(path) / name))]


def _opened(files: list[Path], number: int) -> Image:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(files[number]) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError) as error:
        raise RazorError(f"'{files[number]}' is no image that can be read ({error}).") from error
