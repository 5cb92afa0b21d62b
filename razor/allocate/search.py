"""The whole of an allocation: scores, a plan, true KL to hold it against. Each step is done when it is asked for.

The model is loaded only if there is something to measure; a table that is kept makes any budget a matter of a
second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from razor.allocate.automatic import Automatic
from razor.allocate.budget import Budget
from razor.allocate.interactions import Interaction, interactions
from razor.allocate.measuring import kept, measure, text_digest, text_tokens
from razor.allocate.meter import Meter, taught_by
from razor.allocate.refine import Refined, refine
from razor.allocate.solving import Answer, answer, bounds
from razor.allocate.space import Space
from razor.allocate.subject import Subject
from razor.allocate.table import SCORES, Measured, ScoreTable
from razor.data.calibration import calibration, in_batches
from razor.data.packing import PackedRows
from razor.distill import Batch
from razor.errors import RazorError
from razor.quant import Format, RowMix
from razor.storage import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 512
"""Of text in a pass, about."""


@dataclass(frozen=True)
class Text:
    """What is looked at.

    Attributes:
        calibration: gives the first so many rows of calibration text as batches, or all if there are fewer.
        held_out: other text, for the last word.
    """

    calibration: Callable[[int], Sequence[Batch]] = lambda _: ()
    held_out: Sequence[Batch] = ()

    @classmethod
    def of(cls, train: PackedRows, held_out: PackedRows, check: int, seed: int) -> Text:
        """The training rows that a start would look at, and the first `check` held-out rows."""
        checked = list(range(min(check, len(held_out))))
        return cls(lambda rows: calibration(train, rows, seed, TOKENS), in_batches(held_out, checked, TOKENS))


@dataclass
class Search:
    """A search in a space.

    Attributes:
        automatic: what is to be found.
        space: in what.
        model: fingerprint of the model.
        load: gives the 16-bit model on its device, a new one each time.
        dtype: of the forward pass.
        text: to look at.
        cache: the folder of tables.
        device: of the model, part of what a table of numbers depends on.
    """

    automatic: Automatic
    space: Space
    model: str
    load: Callable[[], PreTrainedModel]
    dtype: torch.dtype
    text: Text
    cache: Path
    device: str = "cpu"
    _subject: Subject | None = field(default=None, init=False, repr=False)
    _held_out: Meter | None = field(default=None, init=False, repr=False)

    def after(self, automatic: Automatic) -> Search:
        """A search for something else in the same space, with the model that is loaded already."""
        other = replace(self, automatic=automatic)
        other._subject, other._held_out = self._subject, self._held_out
        return other

    @property
    def subject(self) -> Subject:
        """The model that is measured, loaded when it is first wanted."""
        if self._subject is None:
            text, seed = self.text.calibration, self.automatic.seed
            self._subject = Subject.of(self.space, self.load, self.dtype, text, seed)
        return self._subject

    def table(self) -> ScoreTable:
        """The scores, from the cache as far as they are there.

        Raises:
            RazorError: the score looks at text, and there is none.
        """
        score = self.automatic.score
        batches = self.text.calibration(score.rows) if score.rows else ()
        if score.rows and not batches:
            raise RazorError(f"score={score.name} looks at calibration text, and there is none: data=... .")
        around = [self.space.base.to_dict(), str(self.dtype), self.automatic.seed, self.device]
        setting = digest([*around, *score.settings.items()])
        text = text_digest(batches) if batches else ""
        measured = Measured(self.model, score.name, score.unit, setting, text, text_tokens(batches))
        path = self.cache / measured.folder(self.space) / SCORES
        table = kept(path, measured)
        return (
            table
            if set(table.losses) >= set(self.space.targets)
            else measure(score, self.subject, table, path)
        )

    def refined(self, first: Answer, table: ScoreTable) -> Refined:
        """The plan after `swaps` trials on true KL."""
        losses = {name: _loss(first, table, name) for name in self.space.targets}
        meter, automatic = self.subject.meter(self.automatic.kl_rows), self.automatic

        def again(factors: Mapping[str, float]) -> Answer:
            return automatic.answer(self.space, table, factors)

        return refine(first, again, meter.kl, losses, automatic.swaps)

    def held_out_kl(self, formats: Mapping[str, Format] | None = None) -> float:
        """True KL on held-out text, nats; None: with every open weight at 16 bits."""
        return self.held_out.kl(formats)

    @property
    def held_out(self) -> Meter:
        """Measures on held-out text; the teacher is asked once."""
        if self._held_out is None:
            subject = self.subject
            device = next(subject.model.parameters()).device
            batches = [batch.to(device) for batch in self.text.held_out]
            self._held_out = Meter(subject.model, subject.switch, taught_by(subject.teacher, batches))
        return self._held_out

    def interactions(self, formats: Mapping[str, Format], pairs: int) -> list[Interaction]:
        """Of some pairs in the formats of a plan."""
        meter = self.subject.meter(self.automatic.kl_rows)
        return interactions(meter, self.space, formats, pairs, self.automatic.seed)

    def curve(self, table: ScoreTable, points: int) -> list[tuple[Budget, Answer]]:
        """Plans for budgets spread evenly from the smallest to the largest, both included."""
        least, most = bounds(self.space, self.automatic.budget)
        rows, unit = self.automatic.granularity == "row", self.automatic.budget.unit
        budgets = [Budget(float(amount), unit) for amount in np.linspace(least, most, points)]
        return [(budget, answer(self.space, table, budget, rows)) for budget in budgets]


def _loss(first: Answer, table: ScoreTable, name: str) -> float:
    """About what a target loses in the option, or the lower of two, that it was given."""
    target, format = first.space.targets[name], first.formats[name]
    spec = (format.low if isinstance(format, RowMix) else format).spec()
    option = next(option for option, own in target.formats.items() if own.spec() == spec)
    return table.loss(target, option)
