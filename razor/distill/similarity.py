"""How alike two sets of vectors are, whatever their widths: linear CKA.

Cosine similarity compares a layer's output with its input number by number, so both must have one shape. Centred
kernel alignment (Kornblith et al., arXiv 1905.00414, eq. 2 with a linear kernel) compares what the two say of how
examples relate: with X [n, p] and Y [n, q] centred over the n examples,

    CKA = <X X', Y Y'> / (|X X'| |Y Y'|)        (' transposed, < > and | | of n x n matrices as vectors)

1 if one is a rotation and scaling of the other, near 0 if they have nothing to do with each other. A micro-batch
should have some tens of examples: of very few, anything resembles anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.distill.head import wide


def linear_cka(first: Tensor, second: Tensor) -> Tensor:
    """Similarity of [n, p] and [n, q], 0 to 1, a scalar; 1 where neither tells any example from another."""
    grams = []
    for vectors in (first, second):
        centred = wide(vectors) - wide(vectors).mean(0)
        grams.append((centred @ centred.T).flatten())
    sizes = grams[0].norm() * grams[1].norm()
    return torch.where(sizes > 0, grams[0] @ grams[1] / sizes.clamp_min(1e-30), torch.ones_like(sizes))
