"""What is measured: a model as the recipe leaves it, its open weights in 16 bits, and a little text.

Embedding, activations, keys and values are as they will be (A8-KV8), so a score sees an open weight in the company
that it will have. The weights are put into options and out again in place; nothing is copied. The 16-bit model that
it is held against has the same weights, so there is one model in memory and not two.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from razor.allocate.meter import Meter, taught_by
from razor.allocate.space import Space, Target
from razor.allocate.switch import Switch
from razor.distill import Batch
from razor.models.student import check_head, quantize_in_place, sharing
from razor.quant import Site, sites
from razor.terminal import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Subject:
    """Model, targets and text.

    Attributes:
        model: quantized by `space.base`, in evaluation mode.
        space: what is open.
        text: gives the first so many rows of calibration text as batches.
        teacher: the 16-bit model, which shares its weights.
        seed: of what is drawn.
        sites: of the model, by name.
        switch: puts its weights into options.
    """

    model: PreTrainedModel
    space: Space
    text: Callable[[int], Sequence[Batch]]
    teacher: PreTrainedModel
    seed: int = 0
    sites: Mapping[str, Site] = field(init=False, repr=False)
    switch: Switch = field(init=False, repr=False)
    _meters: dict[int, Meter] = field(default_factory=dict, init=False, repr=False)
    _batches: dict[int, Sequence[Batch]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.sites = sites(self.model)
        self.switch = Switch(self.sites)

    @classmethod
    def of(
        cls,
        space: Space,
        load: Callable[[], PreTrainedModel],
        dtype: torch.dtype,
        text: Callable[[int], Sequence[Batch]],
        seed: int = 0,
    ) -> Subject:
        """A subject of a space; `load` gives the 16-bit model on its device.

        Raises:
            RazorError: the model makes logits in a way that losses do not follow.
        """
        model = load().eval()
        device = next(model.parameters()).device
        check_head(model)
        teacher = sharing(model)
        quantize_in_place(model, space.base, dtype, trained=False)
        nn.Module.to(model, device).eval().requires_grad_(False)
        return cls(model, space, text, teacher, seed)

    @property
    def targets(self) -> Mapping[str, Target]:
        """The open weights by name."""
        return self.space.targets

    def weight_of(self, target: Target) -> Tensor:
        """The parameter, in its own shape."""
        return self.sites[target.name].weight

    def weight(self, target: Target) -> Tensor:
        """[rows, columns] of it as a format sees it, fp32."""
        return target.site.view.matrix(self.weight_of(target).detach()).float()

    def waiting(self, done: Collection[str], bar: str = "") -> Iterator[tuple[str, Target]]:
        """Targets that are not done, by name; behind a bar if it has a name."""
        left = [(name, target) for name, target in self.targets.items() if name not in done]
        total = len(self.targets)
        with progress_bar(bar, total, "matrices", total - len(left), hidden=not bar) as shown:
            for each in left:
                yield each
                shown.update()

    def batches(self, rows: int) -> Sequence[Batch]:
        """So many rows of calibration text, on the model's device."""
        if rows not in self._batches:
            device = next(self.model.parameters()).device
            self._batches[rows] = [batch.to(device) for batch in self.text(rows)]
        return self._batches[rows]

    def read(self, rows: int, bar: str) -> Iterator[Batch]:
        """The same one after the other, for the model with all open weights at 16 bits."""
        self.switch.hold({})
        batches = self.batches(rows)
        with progress_bar(bar, len(batches), "batches") as shown:
            for batch in batches:
                yield batch
                shown.update()

    @contextmanager
    def gradients(self, targets: Iterable[Target]) -> Iterator[None]:
        """While it is open, these weights and no others have gradients."""
        weights = [self.weight_of(target) for target in targets]
        for weight in weights:
            weight.requires_grad_(True)
        try:
            yield
        finally:
            for weight in weights:
                weight.requires_grad_(False)
                weight.grad = None

    def meter(self, rows: int) -> Meter:
        """Measures true KL on so many rows; the teacher is asked once."""
        if rows not in self._meters:
            taught = taught_by(self.teacher, self.batches(rows))
            self._meters[rows] = Meter(self.model, self.switch, taught)
        return self._meters[rows]


@torch.no_grad()
def lost(weight: Tensor, target: Target, importance: Tensor | None = None) -> Tensor:
    """Squared error of each row in each option, [options, rows].

    Args:
        weight: [rows, columns] fp32.
        target: whose options.
        importance: of a column [columns], or of each weight [rows, columns]; None: all alike.
    """
    found = []
    for format in target.formats.values():
        own = format.bind(weight).to(weight.device)
        error = own.quantize(weight).float().sub_(weight).square_()
        found.append((error if importance is None else error.mul_(importance)).sum(-1))
    return torch.stack(found)
