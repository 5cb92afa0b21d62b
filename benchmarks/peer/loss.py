"""The peer's side of `distill_loss.py`: its EAKLD from the logits of two head products. Runs in its environment.

Its loss is called as its trainer calls it, by `compute_loss`, which asks for a task loss too: a zero, of which
nothing is computed. Both head products are `F.linear`, as in Transformers; the teacher's is made without gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from edgerazor import EdgeRazor
from torch import Tensor

from peer.head import Head, measured
from peer.products import same_products
from peer.sides import serve, versions

LOSS = {
    "loss_type": "logits",
    "loss_function": "compute_kld_confidence",
    "alpha": 1.0,
    "temperature": 1.0,
    "use_entropy": True,
    "confidence_k": 16,
    "reduction": "batch_mean",
}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """What the parent may ask for."""
    peer = EdgeRazor(kd_config={"method": "KD", "log_level": "WARNING", "loss_1": LOSS})

    def loss(head: Head) -> Tensor:
        with torch.no_grad():
            teacher = F.linear(head.teacher, head.teacher_weight)
        own = {"loss": head.hidden.new_zeros(()), "logits": F.linear(head.hidden, head.weight)}
        value: Tensor = peer.compute_loss(own, {"logits": teacher}, head.labels)[0]
        return value

    return measured(job, loss) | {"versions": lambda: versions("torch", "transformers", "edgerazor")}


if __name__ == "__main__":
    same_products()
    serve(prepare)
