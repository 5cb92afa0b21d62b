"""Scores: what an option would cost a matrix in quality, before anything is trained.

Each is one file here with one class, found by its `name`; nothing has to be registered.

weight_error      squared error of the weights; looks at no text
activation_error  squared error of a layer's outputs, by the mean square of each of its inputs
fisher            second-order estimate of the KL, from gradients at the 16-bit model
kl                the KL itself, one matrix switched at a time
"""

from __future__ import annotations

import importlib
import pkgutil

from razor.allocate.scores.base import Score
from razor.errors import RazorError, did_you_mean

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def score_named(name: str) -> Score:
    """The score of a name.

    Raises:
        RazorError: there is none; the text lists the choices.
    """
    known = {kind.name: kind for kind in Score.__subclasses__()}
    if name not in known:
        raise RazorError(f"score={name}.{did_you_mean(str(name), known)}")
    return known[name]()


__all__ = ["Score", "score_named"]
