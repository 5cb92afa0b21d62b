"""What one micro-batch is, and what its means are taken over.

A *sample* is one document. Several documents may be packed into a row; they never attend to each other
(`position_ids` restart) and a loss is first averaged over the valid tokens of each document, then over
documents, so that a long answer counts no more than a short one (arXiv 2605.04062).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from razor.distill.targets import Targets

IGNORE = -100
"""Label of a position without a loss (Hugging Face's convention)."""


@dataclass
class Batch:
    """One micro-batch of packed documents. All tensors are int64 of shape [B, T].

    Attributes:
        input_ids: tokens.
        labels: already shifted: `labels[b, t]` is the token position t has to predict, -100 for none.
        position_ids: restart at 0 with each document; packed documents are told apart by this.
        documents: index of the document, unique across the rows of the batch; -1 on padding.
        share: documents with a loss here / mean of that number over the micro-batches of the same optimizer
            step. Multiplying a loss by it makes an accumulated step equal to one large batch.
        targets: the teacher's cached word on the valid tokens; None if it is asked itself.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    documents: Tensor
    share: float = 1.0
    targets: Targets | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        names = ("input_ids", "labels", "position_ids", "documents")
        moved = {name: getattr(self, name).to(device) for name in names}
        return replace(self, **moved, targets=self.targets and self.targets.to(device))

    @property
    def valid(self) -> Tensor:
        """[B, T] bool: positions that carry a loss."""
        return self.labels != IGNORE

    @property
    def tokens(self) -> int:
        """Number of positions that carry a loss."""
        return int(self.valid.sum())

    def token_weights(self) -> Tensor:
        """[valid tokens] fp32 weights that turn a sum over valid tokens into the mean over documents of means.

        They sum to 1 (or are empty if no position carries a loss).
        """
        documents = self.documents[self.valid]
        if not documents.numel():
            return torch.zeros(0, device=documents.device)
        counts = torch.bincount(documents).float()
        return 1.0 / (counts[documents] * (counts > 0).sum())
