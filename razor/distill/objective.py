"""The objective of a run: named losses and their weights, evaluated together.

The order of a step is: the teacher runs; `observe` looks at its trace and settles what depends on the
teacher alone (EAKLD's gamma, AFD's layers); the student runs, recording just those layers; calling the
objective gives the weighted loss and every part by name. Each mean is over the valid tokens of a document,
then over documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from razor.distill.batch import Batch
from razor.distill.chunked import chunked_loss, teacher_entropy, teacher_logits
from razor.distill.loss import FeatureLoss, LogitsLoss
from razor.distill.trace import Trace
from razor.errors import RazorError, did_you_mean
from razor.spec import construct, spec_of


@dataclass
class Observation:
    """What the teacher's trace of one micro-batch settles.

    Attributes:
        facts: per loss name, what its formula needs (EAKLD: gamma).
        layers: per loss name, the hidden states to compare.
    """

    facts: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def student_layers(self) -> set[int]:
        """Hidden states the student has to record."""
        return {index for chosen in self.layers.values() for index in chosen}


class Objective(nn.Module):
    """A weighted sum of losses.

    Args:
        losses: by name.
        weights: by the same names.

    Raises:
        RazorError: names that do not match, a weight below zero, or nothing to minimise.
    """

    def __init__(self, losses: Mapping[str, LogitsLoss | FeatureLoss], weights: Mapping[str, float]) -> None:
        super().__init__()
        if unusable := [name for name in losses if "." in name or not name or hasattr(nn.ModuleDict(), name)]:
            raise RazorError(f"distill.losses.{unusable[0]}: a loss cannot have this name; choose another.")
        if unknown := sorted(set(weights) - set(losses)):
            raise RazorError(f"distill.weights names '{unknown[0]}'.{did_you_mean(unknown[0], losses)}")
        if missing := sorted(set(losses) - set(weights)):
            raise RazorError(
                f"distill.weights lacks a weight for '{missing[0]}' (distill.weights.{missing[0]}=...)."
            )
        if negative := [name for name, weight in weights.items() if not weight >= 0]:
            raise RazorError(f"distill.weights.{negative[0]}={weights[negative[0]]} must be 0 or more.")
        self.weights = {name: float(weights[name]) for name in losses if weights[name] > 0}
        if not self.weights:
            raise RazorError("Every weight in distill.weights is 0: there is nothing to minimise.")
        active = {name: losses[name] for name in self.weights}
        self.logits_losses = {n: loss for n, loss in active.items() if isinstance(loss, LogitsLoss)}
        self.feature_losses = {n: loss for n, loss in active.items() if isinstance(loss, FeatureLoss)}
        self.losses = nn.ModuleDict(active)

    def spec(self) -> dict[str, Any]:
        """A plain description, from which `from_spec` builds the same objective; losses of weight 0 are gone."""
        return {
            "losses": {name: spec_of(loss) for name, loss in self.losses.items()},
            "weights": dict(self.weights),
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], where: str = "distill") -> Objective:
        """Inverse of `spec`.

        Raises:
            RazorError: an unknown loss or argument, or names and weights that do not match.
        """
        return construct(cls, spec, where)

    @property
    def needs_teacher(self) -> bool:
        """False if no loss looks at a teacher (plain quantization-aware training)."""
        return bool(self.feature_losses) or any(x.needs_teacher for x in self.logits_losses.values())

    def teacher_layers(self, layers: int) -> set[int]:
        """Hidden states of the teacher to record, given its number of layers."""
        return {i for loss in self.feature_losses.values() for i in loss.teacher_layers(layers)}

    @torch.no_grad()
    def observe(self, teacher: Trace | None, batch: Batch) -> Observation:
        """Settle what depends on the teacher alone."""
        seen = Observation()
        if teacher is None:
            return seen
        if any(loss.needs_entropy for loss in self.logits_losses.values()):
            uncertain = teacher_entropy(teacher, batch.valid)
            for name, loss in self.logits_losses.items():
                if loss.needs_entropy:
                    seen.facts[name] = loss.observe(uncertain, batch.token_weights())
        for name, feature in self.feature_losses.items():
            seen.layers[name] = feature.select(teacher.states, batch.documents >= 0)
        return seen

    def forward(
        self, student: Trace, teacher: Trace | None, batch: Batch, seen: Observation
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss (scalar with gradient; 0 if no token is valid) and each part's own value."""
        weights = batch.token_weights()
        total, parts = self._logits(student, teacher, batch, weights, seen)
        for name, loss in self.feature_losses.items():
            value = self._feature(name, loss, student, teacher, batch, weights, seen)
            parts[name] = float(value.detach())
            total = total + self.weights[name] * value
        return total, parts

    def _logits(
        self, student: Trace, teacher: Trace | None, batch: Batch, weights: Tensor, seen: Observation
    ) -> tuple[Tensor, dict[str, float]]:
        labels, names = batch.labels[batch.valid], list(self.logits_losses)
        if not names or not len(labels):
            return student.hidden.sum() * 0.0, dict.fromkeys(names, 0.0)
        needed = any(loss.needs_teacher for loss in self.logits_losses.values())
        if needed and teacher is None:
            raise RazorError(f"The losses {', '.join(names)} need a teacher's trace, but none was recorded.")

        def formula(student_logp: Tensor, teacher_logp: Tensor | None, part: slice) -> Tensor:
            return torch.stack(
                [
                    loss.per_token(student_logp, teacher_logp, labels[part], seen.facts.get(name, {}))
                    for name, loss in self.logits_losses.items()
                ]
            )

        of = teacher_logits(teacher, batch.valid) if needed and teacher else None
        part_weights = torch.tensor([self.weights[name] for name in names], device=weights.device)
        total, values = chunked_loss(student, of, batch.valid, formula, part_weights, weights)
        means = (values @ weights).tolist()
        return total, dict(zip(names, means, strict=True))

    def _feature(
        self,
        name: str,
        loss: FeatureLoss,
        student: Trace,
        teacher: Trace | None,
        batch: Batch,
        weights: Tensor,
        seen: Observation,
    ) -> Tensor:
        if teacher is None or name not in seen.layers:
            raise RazorError(f"The loss '{name}' compares hidden states, but no teacher was observed.")
        missing = [i for i in seen.layers[name] if i not in student.states or i not in teacher.states]
        if missing:
            raise RazorError(f"The loss '{name}' needs hidden state {missing[0]}, which nobody recorded.")
        values = [
            (loss.per_token(student.states[i][batch.valid], teacher.states[i][batch.valid]) * weights).sum()
            for i in seen.layers[name]
        ]
        return torch.stack(values).mean()
