"""A start by GPTQ (arXiv 2210.17323): plain rounding, put right on a few thousand tokens.

Plain rounding looks at weights alone. What matters is what a layer makes of its inputs, so a little text is run
through the student, decoder layer by decoder layer: the inputs of a linear layer are what the finished layers
before it make of the text, with activations, keys and values quantized as in training; and its weights are rounded
column by column, each making up for the errors before it (`solve.py`). Nothing is trained, no gradient is taken.

Three things are added to the paper's method. *It aims at the model before quantization*: what a layer should give
is W V, with V the inputs that the 16-bit model has there, and not W X, with X the student's own, which the layers
before have spoilt already. The weights that come nearest to that on X are W + W (V - X) X^T (X X^T)^-1, and these
are rounded (the aim of GPTAQ, arXiv 2504.02692, reached in another way). *Scales are found once more* when all
codes are known. And *codes are visited again*, each set to the best one given all others (`polish.py`). All three
matter at very few bits (docs/start.md).

The result is a student like any other, codes and scales held by latent weights and learned scales (`holding.py`):
to be packed as it is, or trained from there.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from razor.data.calibration import calibration
from razor.data.packing import PackedRows
from razor.distill import Batch
from razor.errors import RazorError
from razor.quant import Plan, Site
from razor.recipe import PlanFile, QuantRecipe
from razor.spec import read
from razor.start.holding import holding
from razor.start.layer_inputs import LayerInputs
from razor.start.linears import by_group, formats_of, linears_of
from razor.start.polish import polished
from razor.start.solve import Part, Solved, inverse_factor, refitted, solve
from razor.terminal import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 2048
"""Of text in a pass, about."""


@dataclass(frozen=True)
class Started:
    """What a start did.

    Attributes:
        name: of the start.
        tokens: of text that it looked at.
        seconds: it took.
        layers: linear layers that it rounded.
        error: |(T - Wq) X|^2 / |T X|^2 with the weights T that were aimed at; mean over matrices that were rounded.
        error_plain: the same by plain rounding, on the same inputs.
    """

    name: str
    tokens: int
    seconds: float
    layers: int
    error: float
    error_plain: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"{self.layers} linear layers by {self.name} on {self.tokens:,} tokens in {self.seconds:.0f} s; "
            f"error of their outputs {100 * self.error:.1f} %, by plain rounding {100 * self.error_plain:.1f} %"
        )


class GPTQ:
    """Finds codes and scales of a student's linear layers on a little text.

    Args:
        rows: of the run's training text to look at.
        follow: how far to aim from a layer's own outputs (0, the paper's GPTQ) at those of the model before
            quantization (1).
        refit: whether scales are found once more for the codes that came of it.
        passes: over all codes afterwards, each set to the best given the others, and scales again; 0: none.
        damping: added to the diagonal of a Gram matrix, in units of its mean.
        block: columns whose errors are handed on together.
        lr_multiplier: learning rate of scales that become parameters for it, in units of the weights'.

    Raises:
        RazorError: an argument out of range.
    """

    name = "gptq"

    def __init__(
        self,
        rows: int = 64,
        follow: float = 1.0,
        refit: bool = True,
        passes: int = 4,
        damping: float = 0.1,
        block: int = 128,
        lr_multiplier: float = 10.0,
    ) -> None:
        for key, value in (("rows", rows), ("block", block)):
            if read(int, value, f"start.{key}") < 1:
                raise RazorError(f"start.{key}={value} must be at least 1.")
        for key, number in (("damping", damping), ("lr_multiplier", lr_multiplier)):
            if not 0 < read(float, number, f"start.{key}") < float("inf"):
                raise RazorError(f"start.{key}={number} must be above 0.")
        if not 0 <= read(float, follow, "start.follow") <= 1:
            raise RazorError(f"start.follow={follow} must lie in 0..1.")
        if read(int, passes, "start.passes") < 0:
            raise RazorError(f"start.passes={passes} must be 0 or more.")
        self.passes = passes
        self.rows, self.follow, self.refit = rows, float(follow), read(bool, refit, "start.refit")
        self.damping, self.block, self.lr_multiplier = float(damping), block, float(lr_multiplier)

    def __str__(self) -> str:
        return f"{self.name} on {self.rows} rows of the training text; scales are learned from there"

    def held(self, recipe: QuantRecipe | PlanFile) -> QuantRecipe | PlanFile:
        """The recipe whose formats keep what is found (see `holding`)."""
        return holding(recipe, self.lr_multiplier)

    def check(self, model: PreTrainedModel, plan: Plan) -> None:
        """Find out from shapes alone (meta device) whether a student of this plan can be started.

        Raises:
            RazorError: as `__call__`, but for what depends on text.
        """
        linears_of(model, {name: place.weights for name, place in plan.modules.items()})

    def batches(self, rows: PackedRows, seed: int) -> list[Batch]:
        """The text to look at: `self.rows` of these rows, or all if there are fewer (`razor.data.calibration`)."""
        return calibration(rows, self.rows, seed, TOKENS)

    @torch.no_grad()
    def __call__(
        self, student: PreTrainedModel, batches: Sequence[Batch], original: PreTrainedModel | None = None
    ) -> Started:
        """Start a student in place.

        Args:
            student: quantized, with formats that keep scales; its inputs are quantized as in training.
            batches: of text, on any device.
            original: the model before quantization, which comes to the student's device and is not changed; None:
                a layer aims at its own outputs, whatever `follow` says. The inputs that it has in one decoder layer
                are in memory at a time, for all of the text.

        Raises:
            RazorError: no text, a format that keeps no scales, a layer that the text did not reach, two layers
                that share a weight.
        """
        begun, device = time.perf_counter(), next(student.parameters()).device
        found = linears_of(student, formats_of(student))
        if not batches:
            raise RazorError("start=gptq needs text to look at: there is none.")
        models = [student] if original is None or not self.follow else [student, original]
        modes = [model.training for model in models]
        own, *others = (
            LayerInputs(nn.Module.to(model, device).eval(), [batch.to(device) for batch in batches])
            for model in models
        )
        errors: list[tuple[float, float]] = []
        with progress_bar("start=gptq", len(found), "layers") as bar:
            for linears in found:
                errors += self._layer(own, others[0] if others else None, linears)
                own.advance()
                bar.update()
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
        started, plain = (sum(error) / len(errors) for error in zip(*errors, strict=True))
        tokens = sum(int((batch.documents >= 0).sum()) for batch in batches)
        return Started(self.name, tokens, time.perf_counter() - begun, sum(map(len, found)), started, plain)

    def _layer(
        self, own: LayerInputs, other: LayerInputs | None, linears: Mapping[str, Site]
    ) -> list[tuple[float, float]]:
        """Round the linear layers of one decoder layer, in the order in which they are called; (error, plain)."""
        calls = own.calls({name: site.module for name, site in linears.items()})
        if missing := set(linears) - {name for names in calls for name in names}:
            raise RazorError(
                f"The text of start=gptq did not reach '{min(missing)}': more start.rows, or start=none."
            )
        wanted = {} if other is None else other.kept([names[0] for names in calls])
        errors = []
        for names in calls:
            gram, drift = own.products(names[0], wanted.get(names[0]))
            factor = inverse_factor(gram, self.damping)
            for together in by_group([linears[name] for name in names]):
                target, parts, plain = together.weight, together.parts, together.plain
                if drift is not None:
                    target = target + self.follow * target @ drift @ factor.T @ factor
                solved = self._solved(target, parts, gram, factor)
                together.hold(solved)
                errors.append(
                    tuple(_energy(target - x, gram) / _energy(target, gram) for x in (solved.values, plain))
                )
            wanted.pop(names[0], None)
        return errors  # type: ignore[return-value]

    def _solved(self, target: Tensor, parts: Sequence[Part], gram: Tensor, factor: Tensor) -> Solved:
        """Codes and scales of one matrix."""
        found = solve(target, parts, factor, self.block)
        for visit in range(self.passes + 1):
            if visit:
                found = polished(target, found, parts, gram, self.damping, self.block)
            if self.refit:
                found = refitted(target, found, parts, gram)
        return found


def _energy(matrix: Tensor, gram: Tensor) -> float:
    """|M X|^2, up to a factor."""
    return float(((matrix @ gram) * matrix).sum())
