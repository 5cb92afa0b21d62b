"""Scores of the peer's student on held-out rows, by its own forward pass. Runs in the peer's environment."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any

import torch
from side_models import IGNORE, Models, Rows, micro_batches
from torch import Tensor

SCORED_AT_ONCE = 8
"""Rows in a pass of scoring: each pass quantizes all weights again."""


@dataclass
class Expected:
    """Held-out rows, a few at a time, and what the teacher says of them.

    Attributes:
        parts: the rows.
        hidden: of each part, the teacher's last hidden states [valid tokens, width].
        head: makes logits of them.
    """

    parts: list[Rows]
    hidden: list[Tensor]
    head: Any

    @classmethod
    def of(cls, models: Models, rows: Rows) -> Expected:
        """Ask the teacher once; it is scored against at every point of the curve."""
        parts = list(micro_batches(rows, SCORED_AT_ONCE))
        hidden = [models.taught(part, states=True).hidden_states[-1][part.labels != IGNORE] for part in parts]
        return cls(parts, hidden, models.teacher.lm_head)


@torch.no_grad()
def score(models: Models, expected: Expected) -> dict[str, float]:
    """KL(teacher || student) and the like per response token, logits made log-probabilities in fp32."""
    models.student.eval()
    sums, tokens = torch.zeros(4, dtype=torch.float64), 0
    for part, hidden in zip(expected.parts, expected.hidden, strict=True):
        valid, labels = part.labels != IGNORE, part.labels[part.labels != IGNORE]
        own = models.learned(part).logits[valid].float().log_softmax(-1)
        other = expected.head(hidden).float().log_softmax(-1)
        kl = (other.exp() * (other - own)).sum(-1)
        entropies = [-logp.gather(1, labels[:, None])[:, 0] for logp in (own, other)]
        same = (own.argmax(-1) == other.argmax(-1)).float()
        sums += torch.stack([kl, *entropies, same]).double().sum(-1)
        tokens += len(labels)
    kl, entropy, teacher, same = (sums / tokens).tolist()
    found = {"kl": kl, "perplexity": power(entropy), "agreement": 100 * same, "tokens": tokens}
    return found | {"teacher_perplexity": power(teacher)}


def power(entropy: float) -> float:
    """Perplexity, finite unless the entropy is not."""
    return math.exp(min(entropy, 700.0))


@torch.no_grad()
def kv_effect(models: Models, rows: Rows) -> float:
    """Mean absolute change of the student's logits by its quantized keys and values.

    Ends the program if there is none: a model that does not use its cache would silently leave them as they are.
    """
    models.student.eval()
    with_cache, without = (models.learned(rows, kv=kv).logits.float() for kv in (True, False))
    effect = float((with_cache - without).abs().mean())
    if effect == 0:
        sys.exit("The peer's keys and values are not quantized: its cache changes nothing.")
    return effect
