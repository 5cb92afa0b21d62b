"""What a distillation loss is: one number per token.

Masking, averaging over the tokens of a document and over documents, chunking and weighting happen once,
elsewhere; a subclass writes only its formula. `LogitsLoss` compares two distributions over the vocabulary,
`FeatureLoss` compares hidden states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn


class LogitsLoss(nn.Module, ABC):
    """A loss on output distributions."""

    needs_teacher: bool = True
    """Whether the formula looks at the teacher's distribution."""

    needs_entropy: bool = False
    """Whether `observe` wants the teacher's entropies, which costs one more head product of the teacher."""

    def observe(self, entropy: Tensor, weights: Tensor) -> dict[str, float]:
        """Facts about the batch that the formula needs, found from the teacher before the student runs.

        Args:
            entropy: [n] teacher's entropy at each valid token, nats.
            weights: [n] weights that make the mean over documents of means over tokens.
        """
        return {}

    @abstractmethod
    def per_token(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        facts: Mapping[str, float],
    ) -> Tensor:
        """The loss of each token, [n], nats.

        Args:
            student: [n, vocabulary] fp32 log-probabilities.
            teacher: the same of the teacher, None if no loss of the objective needs it.
            labels: [n] tokens to predict.
            facts: what `observe` returned.
        """


class FeatureLoss(nn.Module, ABC):
    """A loss on hidden states of chosen layers."""

    @abstractmethod
    def teacher_layers(self, layers: int) -> set[int]:
        """Indices of the teacher's hidden states to record, given its number of layers."""

    @abstractmethod
    def select(self, states: Mapping[int, Tensor], attended: Tensor) -> list[int]:
        """Which hidden states of the student to record for this batch.

        Args:
            states: the teacher's recorded hidden states [B, T, width].
            attended: [B, T] bool, False on padding.
        """

    @abstractmethod
    def per_token(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of each token for one layer: [n, width], [n, width] -> [n]."""
