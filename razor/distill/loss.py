"""What a distillation loss is: one number per token.

Masking, averaging over the tokens of a document and over documents, chunking and weighting happen once,
elsewhere; a subclass writes only its formula. `LogitsLoss` compares two distributions over the vocabulary,
`LayerLoss` compares what chosen layers left behind: hidden states, attention inputs, router logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from razor.distill.batch import Samples
from razor.distill.trace import Needs, Shape, Trace
from razor.errors import RazorError


@dataclass(frozen=True)
class TeacherTokens:
    """What the teacher says of each valid token before the student runs; both [n].

    Attributes:
        entropy: of its distribution, nats.
        label_probability: what it gives the token that really comes next.
    """

    entropy: Tensor
    label_probability: Tensor


class LogitsLoss(nn.Module, ABC):
    """A loss on output distributions.

    Args:
        temperature: both distributions are softened by it, and the loss multiplied by its square, so that
            gradients keep their size (Hinton et al., 1503.02531, section 2.1).
    """

    needs_teacher: ClassVar[bool] = True
    """Whether the formula looks at the teacher's distribution."""

    linear: ClassVar[bool] = False
    """Whether the gradient is linear in the teacher's probabilities, so that sampled ones serve without bias."""

    coarse: bool = True
    """Whether the formula may be given the likeliest tokens and a tail in place of the vocabulary."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise RazorError(f"temperature={temperature} must be more than 0.")
        self.temperature = temperature

    @property
    def observes(self) -> bool:
        """Whether `observe` wants to see the teacher's tokens, which costs a pass over its logits."""
        return False

    def observe(self, tokens: TeacherTokens, weights: Tensor) -> dict[str, float]:
        """Facts about the batch that the formula needs, found from the teacher before the student runs.

        Args:
            tokens: what the teacher says of each valid token.
            weights: [n] weights that make the mean over documents of means over tokens.
        """
        return {}

    def reverse_share(
        self, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> float | Tensor | None:
        """gamma, a number or [n, 1], if the loss is gamma * KL(q || p) + (1 - gamma) * KL(p || q); else None.

        Such losses share one closed gradient (see `formula`).
        """
        return None

    @abstractmethod
    def per_token(
        self, student: Tensor, teacher: Tensor, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        """The loss of each token, [n], nats.

        Args:
            student: [n, vocabulary] log-probabilities, fp32 or better.
            teacher: the same of the teacher; the student's own if the loss needs none.
            labels: [n] tokens to predict.
            facts: what `observe` returned.
        """

    def forward(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, facts: Mapping[str, float]
    ) -> Tensor:
        """`per_token` at this loss's temperature."""
        t = self.temperature
        if teacher is None:
            teacher = student
        if t == 1:
            return self.per_token(student, teacher, labels, facts)
        softened = [torch.log_softmax(x / t, -1) for x in (student, teacher)]
        return t * t * self.per_token(softened[0], softened[1], labels, facts)


class LayerLoss(nn.Module, ABC):
    """A loss on what layers leave behind.

    The teacher's layers are chosen, each is compared with its counterpart in the student, and the loss is the
    mean over the layers, weighted by `layer_weight`.
    """

    needs_teacher: ClassVar[bool] = True
    """Whether the teacher's record is compared with; without one the student's layers are looked at alone."""

    record: ClassVar[Literal["states", "attention", "routers"]] = "states"
    """Which part of a `Trace` is compared."""

    tower: str | None = None
    """Whose hidden states: of the tower of this name, or of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        self._shapes: tuple[Shape, Shape] | None = None

    @property
    def student(self) -> Shape:
        """Shape of the student."""
        return self._fitted()[0]

    @property
    def teacher(self) -> Shape:
        """Shape of the teacher."""
        return self._fitted()[1]

    def _fitted(self) -> tuple[Shape, Shape]:
        if self._shapes is None:
            raise RazorError(
                f"{type(self).__name__} does not know its models yet: objective.fit(shape_of(student), "
                "shape_of(teacher)), which Distiller does."
            )
        return self._shapes

    def fit(self, student: Shape, teacher: Shape) -> None:
        """Learn the shapes of the two models (the same one twice if there is no teacher), or of their towers.

        Raises:
            RazorError: the loss cannot compare them; the text says what would.
        """
        self._shapes = (self._part(student), self._part(teacher))

    def _part(self, shape: Shape) -> Shape:
        if self.tower is None:
            return shape
        if self.tower not in shape.towers:
            there = ", ".join(shape.towers) or "none"
            raise RazorError(f"tower={self.tower}, but {shape.name} has no such tower. Choices: {there}.")
        return shape.towers[self.tower]

    def needing(self, layers: Iterable[int]) -> Needs:
        """What to record so that these layers can be compared."""
        if self.tower is not None:
            return Needs(towers=frozenset((self.tower, layer) for layer in layers))
        wanted: Any = {self.record: frozenset(layers)}
        return Needs(**wanted)

    def recorded(self, trace: Trace) -> Mapping[int, Any]:
        """What a pass left of this loss's layers, by layer."""
        if self.tower is not None:
            return {layer: state for (name, layer), state in trace.towers.items() if name == self.tower}
        found: Mapping[int, Any] = getattr(trace, self.record)
        return found

    def samples(self, batch: Samples) -> Samples:
        """The batch as the decoder or this loss's tower sees it."""
        return batch if self.tower is None else batch.tower(self.tower)

    def has_something(self, batch: Samples) -> bool:
        """Whether there is anything in a batch for this loss: a tower may have nothing to read."""
        return self.tower is None or bool(self.samples(batch).documents.numel())

    @abstractmethod
    def teacher_layers(self) -> frozenset[int]:
        """The teacher's layers (or hidden states) to record, all that may be chosen."""

    def select(self, teacher: Trace, batch: Samples) -> list[int]:
        """The teacher's layers to compare in this batch: all of them, unless a subclass chooses."""
        return sorted(self.teacher_layers())

    def counterpart(self, layer: int) -> int:
        """The student's layer to compare with the teacher's `layer`: at the same part of the depth."""
        if self.student.layers == self.teacher.layers:
            return layer
        return max(min(layer, 1), round(layer * self.student.layers / self.teacher.layers))

    def layer_weight(self, layer: int) -> float:
        """Weight of a teacher's layer among the others."""
        return 1.0

    @abstractmethod
    def per_token(self, student: Any, teacher: Any, batch: Samples) -> Tensor:
        """The loss of each valid token at one layer, [n], in the row-major order of `batch.valid`.

        Args:
            student: the student's record of the layer: a hidden state [B, T, width], `AttentionInputs`, or router
                logits [B, T, experts]. Of a feature map [B, width, height, length] T are its height x length
                places.
            teacher: the same of the teacher; the student's own if the loss needs none.
            batch: as this layer sees it (`Samples.inside`, of a tower `Samples.tower`): which tokens are valid, and
                which documents they belong to.
        """
