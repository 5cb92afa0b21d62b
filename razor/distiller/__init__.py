"""The losses of a recipe between two models, for any training loop."""

from razor.distiller.distiller import Distiller
from razor.distiller.inputs import batch_of

__all__ = ["Distiller", "batch_of"]
