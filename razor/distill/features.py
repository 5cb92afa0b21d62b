"""Features: pull the student's hidden states to the teacher's.

The loss of a token is the mean squared difference of two hidden states. Hidden states are numbered as
Transformers lists them: 0 is the output of the embedding, i that of layer i, the last one taken after the final
norm. Where the two are compared is said by `AdaptiveFeatures` or `FixedFeatures`.

Squared differences are as large as the states are: they grow with depth, and a few tokens carry numbers a hundred
times the others' (massive activations, arXiv 2402.17762), so a plain mean is about these. With `relative` each
difference is divided by the mean square of the teacher's state at that token: layers and tokens count alike.

A smaller student has narrower hidden states. One linear map, learned along with the student and shared by all
layers, then takes them to the teacher's width (TinyBERT, arXiv 1909.10351, eq. 8). Layers of different numbers are
compared at the same part of the depth.

A model that sees or hears has towers beside its decoder. With `tower` the hidden states are those of one of them,
the last being what it gives the decoder, and places are averaged as tokens are: over those of a document, then over
the documents that have an image (or a recording).

Feature maps of a convolutional network grow wider with depth, and no one map would fit them all: student and
teacher then have the same widths, layer by layer.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from razor.distill.batch import Samples
from razor.distill.head import wide
from razor.distill.loss import LayerLoss
from razor.distill.trace import Shape
from razor.errors import RazorError, did_you_mean
from razor.spec import read

PROJECTIONS = ("none", "linear")

FLOOR = 1e-6
"""The least mean square to divide by: a teacher's state of zeros makes no infinite loss."""


class Features(LayerLoss):
    """Mean squared error of hidden states over their width.

    Args:
        projection: "none", or "linear": a learned map from the student's width to the teacher's. It starts as the
            identity where the widths are equal, else at random, always alike.
        relative: divide a token's error by the mean square of the teacher's state there.
        tower: "vision" or "audio"; None: the decoder's states.

    Attributes:
        map: [teacher's width, student's width] parameter of the linear projection, fp32; None without one.
    """

    map: nn.Parameter | None

    def __init__(
        self,
        projection: Literal["none", "linear"] = "none",
        relative: bool = False,
        tower: str | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        if projection not in PROJECTIONS:
            raise RazorError(f"projection={projection!r}.{did_you_mean(str(projection), PROJECTIONS)}")
        self.projection, self.relative = projection, read(bool, relative, "relative")
        self.register_parameter("map", None)

    def fit(self, student: Shape, teacher: Shape) -> None:
        """Learn the shapes and make the projection, unless there is one of this shape already.

        Raises:
            RazorError: the widths differ and there is no projection, or one cannot make up for it.
        """
        super().fit(student, teacher)
        student, teacher = self.student, self.teacher
        self._check_maps(student, teacher)
        shape = (teacher.width, student.width)
        if self.projection == "linear":
            if self.map is None or self.map.shape != shape:
                self.map = nn.Parameter(_first_map(*shape))
        elif teacher.width != student.width:
            raise RazorError(
                f"hidden states of {student.name} are {student.width} wide, those of {teacher.name} "
                f"{teacher.width}: projection=linear learns a map between them."
            )

    def _check_maps(self, student: Shape, teacher: Shape) -> None:
        """Raise RazorError if hidden states that are compared have other widths or places, where these vary."""
        for layer in range(teacher.layers + 1) if teacher.widths or student.widths else ():
            own = self.counterpart(layer)
            have, want = ((s.width_of(i), s.places_of(i)) for s, i in ((student, own), (teacher, layer)))
            constant = len({*student.widths}) == len({*teacher.widths}) == 1 and have[1] == want[1]
            if have != want and not constant:  # of constant widths a projection can be learned
                raise RazorError(
                    f"hidden state {own} of {student.name} has {have[1]} places of width {have[0]}, state {layer} "
                    f"of {teacher.name} {want[1]} of {want[0]}: feature maps can be compared where these are equal."
                )

    def counterpart(self, layer: int) -> int:
        """At the same part of the depth; after the final norm stands only what does in the teacher, too."""
        own = super().counterpart(layer)
        inner = layer < self.teacher.layers and own > 1
        return min(own, self.student.layers - 1) if inner else own

    def per_token(self, student: Tensor, teacher: Tensor, batch: Samples) -> Tensor:
        """Mean over the width of the squared difference, in fp32; relative: over that of the teacher's square."""
        own, other = wide(student[batch.valid]), wide(teacher[batch.valid])
        if self.projection == "linear":
            self._fitted()
            assert self.map is not None
            with torch.autocast(own.device.type, enabled=False):
                own = F.linear(own, self.map.to(own.dtype))
        error = (own - other).square().mean(-1)
        return error / other.square().mean(-1).clamp_min(FLOOR) if self.relative else error


def _first_map(rows: int, columns: int) -> Tensor:
    """A map to begin with, which keeps the size of elements; no other random number depends on it."""
    if rows == columns:
        return torch.eye(rows, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32, device="cpu") / columns**0.5
