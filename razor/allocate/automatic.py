"""A recipe that leaves the decoder's weights open: a budget, and options to spend it on.

It stands where a `QuantRecipe` stands (`quant=auto_2p79`). Everything but the formats of the decoder's weights is
said as there; those are found for the model at hand, by whoever has model and text (`razor allocate`, a run), and
the plan that is found takes the recipe's place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from razor.allocate.budget import Budget
from razor.allocate.scores import Score
from razor.allocate.solving import Answer, answer, check_budget
from razor.allocate.space import GRANULARITIES, Fit, Space
from razor.allocate.table import Measured, ScoreTable
from razor.errors import RazorError, did_you_mean
from razor.quant import Float16, Format
from razor.recipe import QuantRecipe
from razor.spec import read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FITS = ("any", "gguf")


class Automatic:
    """What is to be found.

    Args:
        name: for tables and file names.
        budget: how much.
        options: names of the formats that a matrix may have.
        score: by which a matrix is judged.
        unit: of the budget, see `Budget`.
        granularity: "matrix", "row" (two formats may share a matrix) or "block" (a decoder layer has one).
        fits: "any", or "gguf": only what a GGUF type holds exactly, at that type's bits.
        coupled: whether q, k and v, and gate and up, have the same.
        kl_rows: of calibration text, for true KL of plans: swaps, interactions.
        swaps: plans tried on true KL after the first, see `razor.allocate.refine`.
        check: rows of held-out text on which the plan's true KL is told; 0: none.
        seed: of the labels that Fisher draws and of the pairs whose interaction is measured; rows are chosen by the
            seed of the text.
        places: embedding, activations and whatever else `QuantRecipe` has beside the decoder's weights; those that
            a pattern of overrides or exclude names are not decided.

    Raises:
        RazorError: a value outside its choices.
    """

    def __init__(
        self,
        name: str,
        budget: float,
        options: Sequence[str],
        score: Score,
        unit: str = "code_bits",
        granularity: str = "matrix",
        fits: str = "any",
        coupled: bool = False,
        kl_rows: int = 8,
        swaps: int = 0,
        check: int = 16,
        seed: int = 0,
        **places: Any,
    ) -> None:
        self.name, self.budget = name, Budget(budget, unit)
        self.options = list(dict.fromkeys(read(Sequence[str], options, "options")))
        if not self.options:
            raise RazorError("options=[] leaves no format to choose from: options=[ternary,int4], say.")
        for key, value, choices in (("granularity", granularity, GRANULARITIES), ("fits", fits, FITS)):
            if value not in choices:
                raise RazorError(f"{key}={value}.{did_you_mean(str(value), choices)}")
        numbers = (("kl_rows", kl_rows, 1), ("swaps", swaps, 0), ("check", check, 0), ("seed", seed, 0))
        for key, number, least in numbers:
            if read(int, number, key) < least:
                raise RazorError(f"{key}={number} must be at least {least}.")
        self.granularity, self.fits, self.coupled = granularity, fits, read(bool, coupled, "coupled")
        self.score = score
        if granularity == "row" and not score.by_rows:
            raise RazorError(
                f"score={score.name} judges whole matrices, granularity=row wants one that tells rows apart: "
                "score=fisher, activation_error or weight_error."
            )
        if granularity == "row" and fits == "gguf":
            raise RazorError(
                "granularity=row and fits=gguf do not go together: a tensor of a GGUF file has one type for all "
                "its rows. Take granularity=matrix, or fits=any."
            )
        self.kl_rows, self.swaps, self.check, self.seed = kl_rows, swaps, check, seed
        self._open = Float16()  # this very object marks what is to be decided
        self._recipe = QuantRecipe(name, self._open, **places)

    def space(self, model: PreTrainedModel, options: Mapping[str, Format], fit: Fit | None = None) -> Space:
        """What can be decided about a model (any device, also meta), once the budget is known to lie within it.

        Args:
            model: whose weights.
            options: the formats of `self.options`, by name.
            fit: how a GGUF type holds a format, for fits=gguf.

        Raises:
            RazorError: a format that a weight cannot have, nothing to decide, or a budget out of reach.
        """
        base = self._recipe.plan(model)
        undecided = [name for name, place in base.modules.items() if place.weights is self._open]
        fit = fit if self.fits == "gguf" else None
        space = Space.of(model, base, undecided, options, self.granularity, self.coupled, fit)
        check_budget(space, self.budget, options)
        return space

    def answer(self, space: Space, table: ScoreTable, factors: Mapping[str, float] | None = None) -> Answer:
        """The best plan by a table of scores.

        Raises:
            RazorError: the table cannot tell rows apart, and rows are to be chosen.
        """
        if self.granularity == "row" and not table.by_rows:
            raise RazorError(
                f"These scores ({table.measured.score}) are of whole matrices, and granularity=row wants rows."
            )
        return answer(space, table, self.budget, self.granularity == "row", factors)

    def stand_in(self, space: Space) -> Answer:
        """A plan of the size that will be found, from shapes alone: as if a bit more quartered any error."""
        table = ScoreTable(Measured("", "size", "squared error", "", "", 0))
        for target in space.targets.values():
            sizes = [space.size(target.name, format) for format in target.formats.values()]
            errors = [target.weights * 4.0 ** -(size.code_bits / target.weights) for size in sizes]
            table.add(target, torch.tensor(errors).unsqueeze(1))
        return answer(space, table, self.budget)
