"""What one micro-batch is, and what its means are taken over.

A *sample* is one document of text, or one image. A loss is first averaged over the places of each sample, then over
samples, so that a long answer counts no more than a short one (arXiv 2605.04062).

Losses look at places: those where the model predicts something (`valid`, of the labels), and those inside the
model, where its layers leave vectors. In text both are the tokens. An image has one prediction, and as many places
inside as a layer's feature map has; `inside` gives the batch as such a layer sees it, so that no loss has to know.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

from razor.errors import RazorError

if TYPE_CHECKING:
    from razor.distill.targets import Targets

Own = TypeVar("Own", bound="Samples")

IGNORE = -100
"""Label of a position without a loss (Hugging Face's convention)."""


class Samples(ABC):
    """What losses have to know of a micro-batch, whatever it is made of; a subclass is a dataclass with these.

    Attributes:
        labels: [B, places] int64: what is to be predicted there, -100 for nothing.
        documents: [B, places] int64: index of the sample, unique across the rows of the batch; -1 on padding.
        share: samples with a loss here / mean of that number over the micro-batches of the same optimizer
            step. Multiplying a loss by it makes an accumulated step equal to one large batch.
        targets: the teacher's cached word on the valid places; None if it is asked itself.
        causal: whether a place sees only those of its sample up to itself.
        unit: what logs count it in.
    """

    labels: Tensor
    documents: Tensor
    share: float
    targets: Targets | None
    causal: ClassVar[bool] = True
    unit: ClassVar[str] = "tokens"

    def to(self: Own, device: torch.device | str) -> Own:
        """The same batch on another device."""
        named: Any = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        moved = {name: value.to(device) for name, value in named.items() if hasattr(value, "to")}
        return replace(self, **moved)  # type: ignore[type-var]

    @abstractmethod
    def inside(self, places: int) -> Samples:
        """The batch as a layer sees it that leaves `places` vectors in each row."""

    @abstractmethod
    def examples(self, state: Tensor) -> Tensor:
        """[n, any width]: a hidden state [B, places, width] as a vector for each example, token or whole image."""

    def tower(self, name: str) -> Samples:
        """The batch as a tower sees it: nothing but what it reads; see `MediaBatch`."""
        raise RazorError(f"A {type(self).__name__} has nothing for a tower ({name}) to read.")

    @property
    def valid(self) -> Tensor:
        """[B, places] bool: where there is a loss."""
        return self.labels != IGNORE

    @property
    def tokens(self) -> int:
        """Number of places that carry a loss."""
        return int(self.valid.sum())

    def token_weights(self) -> Tensor:
        """[valid places] fp32 weights that turn a sum over them into the mean over samples of means.

        They sum to 1 (or are empty if no place carries a loss).
        """
        documents = self.documents[self.valid]
        if not documents.numel():
            return torch.zeros(0, device=documents.device)
        counts = torch.bincount(documents).float()
        return 1.0 / (counts[documents] * (counts > 0).sum())


@dataclass
class Batch(Samples):
    """One micro-batch of packed documents. All tensors are int64 of shape [B, T].

    Several documents may share a row; they never attend to each other (`position_ids` restart).

    Attributes:
        input_ids: tokens.
        labels: already shifted: `labels[b, t]` is the token position t has to predict, -100 for none.
        position_ids: restart at 0 with each document; packed documents are told apart by this.
        documents, share, targets: see `Samples`.
    """

    input_ids: Tensor
    labels: Tensor
    position_ids: Tensor
    documents: Tensor
    share: float = 1.0
    targets: Targets | None = None

    def inside(self, places: int) -> Batch:
        """Itself: layers have a place for each token."""
        return self

    def examples(self, state: Tensor) -> Tensor:
        """The tokens that are no padding."""
        return state[self.documents >= 0]


@dataclass
class Places(Samples):
    """Samples of something else than text as a layer sees them: [B, places], all valid, none before another.

    Attributes:
        labels: neither tokens nor classes; only that there is something to compare at each place.
        documents: index of the sample that the place belongs to.
        share, targets: see `Samples`; not of the places.
    """

    labels: Tensor
    documents: Tensor
    share: float = 1.0
    targets: Targets | None = None
    causal: ClassVar[bool] = False
