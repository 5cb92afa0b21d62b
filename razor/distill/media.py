"""A micro-batch of text with images or sound between its words.

To the decoder it is text: where an image or a recording stands, as many tokens are held free as its tower makes
vectors. So labels, documents and all losses on tokens are those of `Batch`. To a tower it is a row of places, those
of all images (or recordings) of the batch one after the other; whose they are follows from the tokens held free,
because a tower makes the same number of places for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from razor.distill.batch import Batch, Places

TEXT, IMAGE, VIDEO, AUDIO = range(4)
"""What stands at a token, as Transformers numbers it (`mm_token_type_ids`)."""

READ = {"vision": (IMAGE, VIDEO), "audio": (AUDIO,)}
"""What a tower reads."""


@dataclass
class MediaBatch(Batch):
    """One micro-batch of documents, one a row, with what they show and let hear.

    Attributes:
        kinds: [B, T] int64, what stands at each token: TEXT, IMAGE, VIDEO or AUDIO.
        media: what the model is called with besides tokens, by name (`pixel_values`, `image_grid_thw`,
            `input_features`, ...); first dimensions go over all images or recordings of the batch, row by row.
        input_ids, labels, position_ids, documents, share, targets: see `Batch`.
    """

    kinds: Tensor = field(kw_only=True)
    media: Mapping[str, Tensor] = field(kw_only=True)

    def to(self, device: torch.device | str) -> MediaBatch:
        """The same batch on another device."""
        moved = super().to(device)
        return replace(moved, media={name: value.to(device) for name, value in self.media.items()})

    def tower(self, name: str) -> TowerPlaces:
        """A place for each token that is held free for what the tower reads."""
        read = torch.isin(self.kinds, torch.tensor(READ[name], device=self.kinds.device))
        documents = self.documents[read].unsqueeze(0)
        return TowerPlaces(documents, documents)


class TowerPlaces(Places):
    """A batch as a tower sees it: [1, places], all of them valid, each seeing the others of its image."""

    def inside(self, places: int) -> TowerPlaces:
        """As a layer sees it that has so many places in all.

        Before a tower merges its places each token has several. Where that number is not whole, which sound of an
        odd length makes it, the place between two recordings may be counted with the wrong one.
        """
        tokens = self.documents.shape[1]
        if places == tokens:
            return self
        nearest = torch.arange(places, device=self.documents.device) * tokens // places
        documents = self.documents[:, nearest]
        return TowerPlaces(documents, documents)

    def examples(self, state: Tensor) -> Tensor:
        """A document each, the mean over its places."""
        _, which = self.inside(state.shape[1]).documents[0].unique(return_inverse=True)
        count = torch.bincount(which)
        sums = state.new_zeros(len(count), state.shape[2]).index_add_(0, which, state[0])
        return sums / count.unsqueeze(1).to(state.dtype)
