"""How far training is, for formats that change on the way (see `Ternary`)."""

from __future__ import annotations

from torch import nn

from razor.errors import RazorError
from razor.quant.ternary import Ternary


def set_progress(model: nn.Module, progress: float) -> None:
    """Tell every annealed format of a model how far training is.

    Args:
        model: quantized.
        progress: optimizer steps done / steps of the whole run, 0..1.

    Raises:
        RazorError: progress outside 0..1.
    """
    if not 0 <= progress <= 1:
        raise RazorError(f"Training progress {progress} must lie in 0..1: optimizer steps done / all steps.")
    for module in model.modules():
        if isinstance(module, Ternary) and module.anneal:
            module.progress = float(progress)
