"""Handwritten digits that come inside scikit-learn: 1,797 grey images of 8 x 8 pixels, ten classes.

The test part of the optical recognition data of Alpaydin and Kaynak (UCI, 1998), 43 people's writing. Small enough
to train a classifier on two cores in minutes, and no download.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.data.images import ImageSource
from razor.errors import RazorError

BRIGHTEST = 16.0
"""Pixels count how many of 4 x 4 smaller ones were set."""


class Digits(ImageSource):
    """The digits; see `ImageSource`."""

    classes = 10
    class_names = tuple("0123456789")
    mean, deviation = 0.305, 0.376  # of all pixels, brightest 1

    def images(self) -> tuple[Tensor, Tensor]:  # noqa: D102 - see ImageSource
        from sklearn.datasets import load_digits

        found = load_digits()
        return torch.from_numpy(found.images / BRIGHTEST).float(), torch.from_numpy(found.target).long()

    def check(self) -> None:
        """See `DataSource`.

        Raises:
            RazorError: scikit-learn is not installed.
        """
        from importlib.util import find_spec

        if find_spec("sklearn") is None:
            raise RazorError("data=digits comes inside a package: pip install scikit-learn")
