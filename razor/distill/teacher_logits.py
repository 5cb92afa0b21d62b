"""The teacher's logits, looked at before the student runs and compared with after it.

Some losses have to know the teacher's mood over the whole micro-batch (its entropy) before they can weigh a
single token. That takes a pass over its logits, which are kept for the loss if they are few, and else made
again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.distill.head import Head, exact_products, wide
from razor.distill.logits import entropy
from razor.distill.loss import TeacherTokens
from razor.distill.pieces import KEPT_BYTES, blocks, chunk_bytes, pieces


class TeacherLogits:
    """The teacher's head products by parts.

    Args:
        head: of the teacher, without gradient.
    """

    def __init__(self, head: Head) -> None:
        self.head = head.detached()
        self._kept: Tensor | None = None

    @torch.no_grad()
    def observe(self, labels: Tensor) -> TeacherTokens:
        """Entropy, and probability of the label, of each token: [n] each."""
        tokens, weight = len(labels), self.head.weight
        with exact_products(self.head):
            if tokens * self.head.row_bytes <= KEPT_BYTES:
                self._kept = self.head.product(slice(0, tokens))
            chunk = chunk_bytes(weight.device.type, weight.element_size())
            said = wide(weight[:0]).new_empty(2, tokens)
            for part in pieces(tokens, self.head.row_bytes, chunk):
                self._look(self.product(part), labels[part], said[:, part])
        return TeacherTokens(*said)

    def _look(self, product: Tensor, labels: Tensor, said: Tensor) -> None:
        for block in blocks(product):
            logp = torch.log_softmax(self.head.logits(product[block]), -1)
            said[0, block] = entropy(logp)
            said[1, block] = logp.gather(-1, labels[block].unsqueeze(-1)).squeeze(-1).exp()

    @torch.no_grad()
    def product(self, part: slice) -> Tensor:
        """The head's product of a part [m, vocabulary], rounded."""
        return self.head.product(part) if self._kept is None else self._kept[part]
