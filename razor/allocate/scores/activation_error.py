"""Squared error of the outputs: which matrix moves most where it is used."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from razor.allocate.scores.base import Score
from razor.allocate.subject import Subject, lost
from razor.errors import RazorError
from razor.models import record


class ActivationError(Score):
    """loss = sum over a row of (Wq - W)^2 E[x^2], x being what the layer is given, quantized as in training.

    The expected square of the error of an output, if errors of different columns were independent: the diagonal of
    the Gram matrix that GPTQ uses (arXiv 2210.17323), as in AWQ and its kin. One pass over the text, in which a
    vector of moments is kept for each layer.
    """

    name = "activation_error"
    unit = "squared error"

    def measure(self, subject: Subject, done: Collection[str]) -> Iterator[tuple[str, Tensor]]:  # noqa: D102
        for name, target in subject.targets.items():
            if target.site.kind != "linear":
                raise RazorError(
                    f"score=activation_error looks at the inputs of linear layers, but '{name}' is of kind "
                    f"{target.site.kind}: score=fisher takes any."
                )
        moments = _moments(subject, self.rows)
        for name, target in subject.waiting(done):
            if name not in moments:
                raise RazorError(
                    f"The calibration text did not reach '{name}': more score.rows=..., or score=weight_error."
                )
            yield name, lost(subject.weight(target), target, moments[name])


@torch.no_grad()
def _moments(subject: Subject, rows: int) -> dict[str, Tensor]:
    """Mean square of each input column, [columns] fp32, of targets that the text reaches; padding left out."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    text = torch.empty(0)

    def note(name: str) -> Any:
        def hook(module: Any, given: tuple[Tensor, ...]) -> None:
            x = given[0]
            x = module.quantized_input(x) if hasattr(module, "quantized_input") else x
            x = (x[text] if x.shape[:-1] == text.shape else x.flatten(0, -2)).float()
            own = x.square().sum(0)
            sums[name] = own if name not in sums else sums[name] + own
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    handles = [
        subject.sites[name].module.register_forward_pre_hook(note(target.name))
        for target in subject.targets.values()
        for name in target.names
    ]
    try:
        for batch in subject.read(rows, "moments"):
            text = batch.documents >= 0
            record(subject.model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(1, counts[name]) for name, total in sums.items()}
