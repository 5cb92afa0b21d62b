"""True KL: predictions of a model with weights in these formats, held against the 16-bit model's.

KL(teacher || student) in nats per response token at temperature 1, the mean over tokens of some text. The teacher
is asked once; its last hidden states are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from razor.allocate.space import Target
from razor.allocate.switch import Switch
from razor.distill import Batch, ForwardKL, Needs, Trace
from razor.distill.chunked import chunked_loss
from razor.distill.formula import Formula
from razor.distill.head import Head
from razor.distill.teacher_logits import TeacherLogits
from razor.errors import RazorError
from razor.models import layers_of, record
from razor.models.suffix import starting_at
from razor.quant import Format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Taught = Sequence[tuple[Batch, Head]]
"""Batches, and what the teacher's head is given at their response tokens."""


@torch.no_grad()
def taught_by(teacher: PreTrainedModel, batches: Sequence[Batch]) -> Taught:
    """What a teacher, in evaluation mode, says of some text.

    Raises:
        RazorError: there is no text, or none that carries a loss.
    """
    if not any(batch.tokens for batch in batches):
        raise RazorError("True KL needs text to be measured on: there is none (data=...).")
    return [(batch, Head.of(record(teacher, batch), batch.valid).detached()) for batch in batches]


class Meter:
    """Measures a model whose open weights are put into formats, in place.

    Args:
        model: quantized, in evaluation mode.
        switch: of its weights; several meters may share it.
        taught: see `taught_by`.

    Attributes:
        tokens: that a mean is over.
    """

    def __init__(self, model: PreTrainedModel, switch: Switch, taught: Taught) -> None:
        self.model, self.switch, self.taught = model, switch, taught
        self.tokens = sum(len(head.hidden) for _, head in taught)
        own = {id(module): name for name, module in model.named_modules()}
        self._blocks = [f"{own[id(block)]}." for block in layers_of(model)]
        self._states: list[Mapping[int, torch.Tensor]] | None = None
        self._tuples = False

    @torch.no_grad()
    def kl(self, formats: Mapping[str, Format] | None = None) -> float:
        """Of the model with these formats, and all other open weights at 16 bits."""
        self.switch.hold(formats or {})
        return self._mean([record(self.model, batch) for batch, _ in self.taught])

    @torch.no_grad()
    def switched(self, target: Target, option: str) -> float:
        """Of the model with one weight in an option, and all other open ones at 16 bits."""
        states = self._kept_states()
        layer = next((i for i, block in enumerate(self._blocks) if target.name.startswith(block)), 0)
        self.switch.hold({target.name: target.formats[option]})
        traces = []
        for (batch, _), kept in zip(self.taught, states, strict=True):
            with starting_at(layers_of(self.model), layer, kept[layer], self._tuples):
                traces.append(record(self.model, batch))
        return self._mean(traces)

    def _kept_states(self) -> list[Mapping[int, torch.Tensor]]:
        """What goes into every layer while all open weights are at 16 bits, batch by batch."""
        if self._states is None:
            self.switch.hold({})
            needs = Needs(states=frozenset(range(len(self._blocks))))
            note = layers_of(self.model)[0].register_forward_hook(self._note)
            self._states = [record(self.model, batch, needs).states for batch, _ in self.taught]
            note.remove()
        return self._states

    def _note(self, _: nn.Module, __: Any, output: Any) -> None:
        self._tuples = isinstance(output, tuple)

    def _mean(self, traces: Sequence[Trace]) -> float:
        pairs = zip(self.taught, traces, strict=True)
        sums = [float(_kl(trace, head, batch).double().sum()) for (batch, head), trace in pairs]
        return sum(sums) / self.tokens


def _kl(trace: Trace, teacher: Head, batch: Batch) -> torch.Tensor:
    """[n] KL of each response token."""
    labels, loss = batch.labels[batch.valid], ForwardKL()

    def values(logp: torch.Tensor, of: torch.Tensor | None, part: slice) -> torch.Tensor:
        assert of is not None
        return loss(logp, of, labels[part], {}).unsqueeze(0)

    one = torch.ones(1, device=labels.device)
    own = Head.of(trace, batch.valid)
    return chunked_loss(own, TeacherLogits(teacher), Formula(values), one, one.new_ones(len(labels)))[1][0]
