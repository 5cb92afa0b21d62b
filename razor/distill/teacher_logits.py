"""The teacher's logits, looked at before the student runs and compared with after it.

Some losses have to know the teacher's mood over the whole micro-batch (its entropy) before they can weigh a
single token. That takes a pass over its logits, which are kept for the loss if they are few, and else made
again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.distill.head import Head
from razor.distill.logits import entropy
from razor.distill.loss import TeacherTokens
from razor.distill.pieces import KEPT_BYTES, blocks, chunk_bytes, pieces


class TeacherLogits:
    """The teacher's head products by parts.

    Args:
        head: of the teacher, without gradient.
    """

    def __init__(self, head: Head) -> None:
        self.head = Head(head.hidden.detach(), head.weight.detach(), head.bias)
        self._kept: Tensor | None = None

    @torch.no_grad()
    def observe(self, labels: Tensor) -> TeacherTokens:
        """Entropy, and probability of the label, of each token: [n] each."""
        tokens, row_bytes = len(labels), self.head.row_bytes
        if tokens * row_bytes <= KEPT_BYTES:
            self._kept = self.head.product(slice(0, tokens))
        entropies, probabilities = [], []
        for part in pieces(
            tokens, row_bytes, chunk_bytes(labels.device.type, self.head.weight.element_size())
        ):
            product = self.product(part)
            for block in blocks(product):
                logp = torch.log_softmax(self.head.logits(product[block]), -1)
                entropies.append(entropy(logp))
                probabilities.append(logp.gather(-1, labels[part][block].unsqueeze(-1)).squeeze(-1).exp())
        nothing = labels.new_zeros(0, dtype=torch.float32)
        return TeacherTokens(torch.cat([nothing, *entropies]), torch.cat([nothing, *probabilities]))

    @torch.no_grad()
    def product(self, part: slice) -> Tensor:
        """The head's product of a part [m, vocabulary], rounded."""
        return self.head.product(part) if self._kept is None else self._kept[part]
