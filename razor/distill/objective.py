"""The objective of a run: named losses and their weights, evaluated together.

The order of a step is: the teacher runs; `observe` looks at its trace and settles what depends on the
teacher alone (EAKLD's gamma, AFD's layers); the student runs, recording just those layers; calling the
objective gives the weighted loss and every part by name. Each mean is over the valid tokens of a document,
then over documents. Without a teacher, its cached targets come with the batch and take its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from razor.distill.batch import Samples
from razor.distill.chunked import chunked_loss
from razor.distill.formula import LossFormula
from razor.distill.head import Head
from razor.distill.loss import LayerLoss, LogitsLoss
from razor.distill.observation import Observation
from razor.distill.schedule import Schedule
from razor.distill.targets import check_targets
from razor.distill.teacher_logits import TeacherLogits
from razor.distill.trace import Needs, Shape, Trace, places
from razor.errors import RazorError, did_you_mean
from razor.spec import construct, read, spec_of


class Objective(nn.Module):
    """A weighted sum of losses.

    Args:
        losses: by name.
        weights: by the same names; a number, or a `Schedule` over the run.

    Raises:
        RazorError: names that do not match, a weight below zero, or nothing to minimise.
    """

    def __init__(
        self,
        losses: Mapping[str, LogitsLoss | LayerLoss],
        weights: Mapping[str, float | Schedule],
    ) -> None:
        super().__init__()
        if unusable := [name for name in losses if "." in name or not name or hasattr(nn.ModuleDict(), name)]:
            raise RazorError(f"distill.losses.{unusable[0]}: a loss cannot have this name; choose another.")
        if unknown := sorted(set(weights) - set(losses)):
            raise RazorError(f"distill.weights names '{unknown[0]}'.{did_you_mean(unknown[0], losses)}")
        if missing := sorted(set(losses) - set(weights)):
            raise RazorError(
                f"distill.weights lacks a weight for '{missing[0]}' (distill.weights.{missing[0]}=...)."
            )
        given = {name: _weight(name, weights[name]) for name in losses}
        self.weights = {name: weight for name, weight in given.items() if largest(weight) > 0}
        if not self.weights:
            raise RazorError("Every weight in distill.weights is 0: there is nothing to minimise.")
        self.losses = nn.ModuleDict({name: losses[name] for name in self.weights})
        self.set_step(0, 1)

    def spec(self) -> dict[str, Any]:
        """A plain description, from which `from_spec` builds the same objective; losses of weight 0 are gone."""
        weights = {n: spec_of(w) if isinstance(w, Schedule) else w for n, w in self.weights.items()}
        return {"losses": {name: spec_of(loss) for name, loss in self.losses.items()}, "weights": weights}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], where: str = "distill") -> Objective:
        """Inverse of `spec`.

        Raises:
            RazorError: an unknown loss or argument, or names and weights that do not match.
        """
        return construct(cls, spec, where)

    def set_step(self, step: int, steps: int) -> None:
        """Where the run stands: before each micro-batch, if a weight is scheduled."""
        self.now = {
            name: weight.at(step, steps) if isinstance(weight, Schedule) else weight
            for name, weight in self.weights.items()
        }

    @property
    def scheduled(self) -> list[str]:
        """Names of the losses whose weight changes over the run."""
        return [name for name, weight in self.weights.items() if isinstance(weight, Schedule)]

    @property
    def logits_losses(self) -> dict[str, LogitsLoss]:
        """Losses on distributions that have a weight now."""
        return {
            n: loss for n, loss in self.losses.items() if self.now[n] > 0 and isinstance(loss, LogitsLoss)
        }

    @property
    def layer_losses(self) -> dict[str, LayerLoss]:
        """Losses on layers that have a weight now."""
        return {n: loss for n, loss in self.losses.items() if self.now[n] > 0 and isinstance(loss, LayerLoss)}

    @property
    def needs_teacher(self) -> bool:
        """False if no loss ever looks at a teacher (plain quantization-aware training)."""
        return bool(self.of_teacher)

    @property
    def of_teacher(self) -> list[str]:
        """Names of the losses that look at a teacher."""
        return [name for name, loss in self.losses.items() if loss.needs_teacher]

    @property
    def teaching(self) -> bool:
        """Whether a loss that has a weight now looks at a teacher."""
        return any(self.now[name] > 0 for name in self.of_teacher)

    def fit(self, student: Shape, teacher: Shape | None) -> None:
        """Tell the losses on layers what they compare; learned projections are made here.

        Args:
            student: the model in training.
            teacher: None if no loss looks at one.

        Raises:
            RazorError: a loss that cannot compare them.
        """
        for name, loss in self.losses.items():
            if isinstance(loss, LayerLoss):
                try:
                    loss.fit(student, teacher or student)
                except RazorError as error:
                    raise RazorError(f"The loss '{name}': {error}") from error

    def check_cached(self, kind: str) -> None:
        """Raise RazorError if a loss cannot be computed from cached targets of a kind ("sampled", "topk")."""
        for name in self.of_teacher:
            check_targets(kind, name, self.losses[name])

    def teacher_needs(self) -> Needs:
        """What to record of the teacher."""
        return self._needs(
            {n: loss.teacher_layers() for n, loss in self.layer_losses.items() if loss.needs_teacher}
        )

    def _needs(self, layers: Mapping[str, Any]) -> Needs:
        needs = Needs()
        for name, chosen in layers.items():
            needs |= self.layer_losses[name].needing(chosen)
        return needs

    @torch.no_grad()
    def observe(self, teacher: Trace | None, batch: Samples) -> Observation:
        """Settle what depends on the teacher alone."""
        seen = Observation()
        wanting = {n: loss for n, loss in self.logits_losses.items() if loss.needs_teacher}
        if teacher is not None and wanting:
            seen.logits = TeacherLogits(Head.of(teacher, batch.valid))
        observing = {n: loss for n, loss in wanting.items() if loss.observes}
        if observing:
            tokens = batch.targets.tokens if batch.targets is not None else None
            if seen.logits is not None:
                tokens = seen.logits.observe(batch.labels[batch.valid])
            if tokens is not None:
                weights = batch.token_weights()
                seen.facts = {n: loss.observe(tokens, weights) for n, loss in observing.items()}
                seen.statistics = {
                    "teacher/entropy": float((tokens.entropy * weights).sum()),
                    "teacher/label_probability": float((tokens.label_probability * weights).sum()),
                }
        for name, loss in self.layer_losses.items():
            if (teacher is not None or not loss.needs_teacher) and loss.has_something(batch):
                seen.layers[name] = loss.select(teacher, batch)  # type: ignore[arg-type]
        seen.needs = self._needs(
            {n: map(self.layer_losses[n].counterpart, layers) for n, layers in seen.layers.items()}
        )
        seen.compared = self._needs(
            {n: layers for n, layers in seen.layers.items() if self.layer_losses[n].needs_teacher}
        )
        return seen

    def forward(
        self, student: Trace, teacher: Trace | None, batch: Samples, seen: Observation
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighted loss (scalar with gradient; 0 if no token is valid) and each part's own value.

        A loss on a tower that has nothing to read in this batch is 0, as its part of the gradient is.
        """
        weights = batch.token_weights()
        total, parts = self._logits(student, batch, weights, seen)
        for name, loss in self.layer_losses.items():
            if not loss.has_something(batch):
                parts[name] = 0.0
                continue
            value = self._layers(name, loss, student, teacher, batch, weights, seen)
            parts[name] = float(value.detach())
            total = total + self.now[name] * value
        return total, parts

    def _logits(
        self, student: Trace, batch: Samples, weights: Tensor, seen: Observation
    ) -> tuple[Tensor, dict[str, float]]:
        losses, labels, targets = self.logits_losses, batch.labels[batch.valid], batch.targets
        if not losses or not len(labels):
            return student.hidden.sum() * 0.0, dict.fromkeys(losses, 0.0)
        wanting = [name for name, loss in losses.items() if loss.needs_teacher]
        if wanting and seen.logits is None and targets is None:
            raise RazorError(
                f"The losses {', '.join(wanting)} need a teacher's trace, but none was recorded."
            )

        formula = LossFormula(losses, labels, seen.facts, targets)
        part_weights = torch.tensor([self.now[name] for name in losses], device=weights.device)
        head = Head.of(student, batch.valid)
        total, values = chunked_loss(head, seen.logits, formula, part_weights, weights)
        means = (values @ weights.to(values.dtype)).tolist()
        spread = (values.std(1, correction=0).tolist(), values.amax(1).tolist())
        for name, deviation, largest_one in zip(losses, *spread, strict=True):
            seen.statistics |= {f"{name}/token_std": deviation, f"{name}/token_max": largest_one}
        return total, dict(zip(losses, means, strict=True))

    def _layers(
        self,
        name: str,
        loss: LayerLoss,
        student: Trace,
        teacher: Trace | None,
        batch: Samples,
        weights: Tensor,
        seen: Observation,
    ) -> Tensor:
        if name not in seen.layers or (loss.needs_teacher and teacher is None):
            raise RazorError(f"The loss '{name}' compares layers, but no teacher was observed.")
        own, values, total = loss.recorded(student), [], 0.0
        theirs = loss.recorded(teacher) if loss.needs_teacher and teacher is not None else {}
        outer = loss.samples(batch)
        for layer in seen.layers[name]:
            counterpart = loss.counterpart(layer)
            if counterpart not in own or (loss.needs_teacher and layer not in theirs):
                raise RazorError(
                    f"The loss '{name}' needs {loss.record} of layer {layer}, which nobody recorded."
                )
            record = own[counterpart]
            inner = outer.inside(places(record))
            per_token = loss.per_token(record, theirs.get(layer, record), inner)
            each = weights if inner is batch else inner.token_weights()
            values.append(loss.layer_weight(layer) * (per_token * each).sum())
            total += loss.layer_weight(layer)
        return torch.stack(values).sum() / total


def _weight(name: str, weight: Any) -> float | Schedule:
    value: float | Schedule = read(float | Schedule, weight, f"distill.weights.{name}")
    if not isinstance(value, Schedule) and not 0 <= value < float("inf"):
        raise RazorError(f"distill.weights.{name}={weight} must be 0 or more.")
    return value


def largest(weight: float | Schedule) -> float:
    """The largest value that a weight takes."""
    return weight.largest if isinstance(weight, Schedule) else weight
