"""Going down in bits: a student starts wide and gets narrower on the way, 4 -> 2 -> ternary.

Each time the format changes, latents stay where training has brought them; only how they are read is new. A 4-bit
student soon matches its teacher, so what the last stage starts from are latents that already work when rounded, and
not the teacher's weights hit by ternary rounding at once.

The last stage is always the run's own plan, because that is what will be packed. An earlier stage puts its
format in the place of every weight format of the plan that has *fewer* bits, and leaves the others, so a plan that
keeps the embedding at 4 bits keeps it; activations and keys stay the plan's throughout. What the plan's formats
learn for each weight (scales, chosen rows) is made anew from the latents at the moment they take over.

The stage follows from the step alone, so a resumed run needs no state, and names in checkpoints never change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import lightning as L
import torch
from torch import nn

from razor.errors import RazorError
from razor.quant import FakeQuantizer, Format, Site
from razor.train.callbacks.base import RunCallback, RunFacts, check_part, check_whole
from razor.train.callbacks.code_flips import coded_sites
from razor.train.sharding import full


@dataclass(frozen=True)
class Stage:
    """A format for weights, until a part of the run, 0..1, is done."""

    until: float
    format: Format


class BitSchedule(RunCallback):
    """Swaps the formats of weights while the student trains.

    Args:
        stages: name -> stage, widest first; after the last of them the run's plan holds.

    Raises:
        RazorError: no stages, not in the order of time, or one that reaches to the end.
    """

    def __init__(self, stages: Mapping[str, Stage]) -> None:
        super().__init__()
        if not stages:
            raise RazorError(
                "callbacks.bits.stages is empty: give {name: {until: 0.3, format: ...}}, widest first."
            )
        before = 0.0
        for name, stage in stages.items():
            until = check_part(f"bits.stages.{name}.until", stage.until)
            if until >= 1:
                raise RazorError(
                    f"callbacks.bits.stages.{name}.until={until:g}: the last stage has to be the run's plan, "
                    "which is what will be packed; leave it a part of the run, until below 1."
                )
            if until <= before:
                raise RazorError(
                    f"callbacks.bits.stages.{name}.until={until:g} must come after {before:g}, where it starts."
                )
            before = until
        self.stages = dict(stages)
        self.current: int | None = None

    @property
    def settled(self) -> bool:
        """Whether the student has the plan's formats now, for good."""
        return self.current == len(self.stages)

    def check(self, run: RunFacts) -> None:
        """Raise RazorError if a stage is no step on the way down to the plan, or the run is too short for all."""
        for name, stage in self.stages.items():
            wider = self._wider(run.student, stage)
            if not wider:
                raise RazorError(
                    f"callbacks.bits.stages.{name}: no weight of the plan has fewer bits than "
                    f"{stage.format.label}, so this stage would change nothing; the last stage is "
                    "the run's plan (quant=...)."
                )
            for site, _ in wider:
                stage.format.check(site.shape, site.name)
            if stage.format.bind(torch.zeros(2, wider[0][0].shape[1])) is not stage.format:
                raise RazorError(
                    f"callbacks.bits.stages.{name}.format has something of its own for each weight (learned "
                    "scales, chosen rows, annealing), which only the plan's formats may: give a plain one."
                )
        labels = [(name, _bits(stage.format, (1, 4096))) for name, stage in self.stages.items()]
        for (wide, first), (narrow, then) in pairwise(labels):
            if then >= first:
                raise RazorError(
                    f"callbacks.bits.stages: '{narrow}' is not narrower than '{wide}' before it."
                )
        check_whole(
            "bits",
            (p for _, q in coded_sites(run.student) for p in q.format.parameters()),
            "starts scales from",
        )
        if run.processes > 1 and any(q.format.learned() for _, q in coded_sites(run.student)):
            raise RazorError(
                "callbacks.bits with learned scales (quant=..lsq) leaves them without gradients for a while, which "
                "processes that train together cannot agree on: one process, or formats without them."
            )
        if (
            run.steps is not None
            and (starts := self._starts(run.steps)) != sorted({0, *starts, run.steps})[:-1]
        ):
            raise RazorError(
                f"callbacks.bits: {run.steps} steps are too few for {len(self.stages)} stages and the plan: a "
                "stage would get none. Train longer or move `until`."
            )

    def _starts(self, steps: int) -> list[int]:
        """The step, from 0, with which each stage begins; the plan's last."""
        return [0, *(math.ceil(stage.until * steps) for stage in self.stages.values())]

    @staticmethod
    def _wider(student: nn.Module, stage: Stage) -> list[tuple[Site, FakeQuantizer]]:
        """Weights whose format in the plan has fewer bits than the stage's."""
        return [
            (site, quantizer)
            for site, quantizer in coded_sites(student)
            if _bits(_plan_format(quantizer), site.shape) < _bits(stage.format, site.shape)
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is known of the stage yet."""
        super().on_train_start(trainer, pl_module)
        self.current = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Change the formats if a stage begins with this step."""
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        starts = self._starts(trainer.max_steps)
        stage = sum(start <= trainer.global_step for start in starts) - 1
        if stage == self.current:
            return
        student: nn.Module = pl_module.student  # type: ignore[assignment]
        for _, quantizer in coded_sites(student):
            _give_back(quantizer)
        if stage < len(self.stages):
            name, chosen = list(self.stages.items())[stage]
            for _, quantizer in self._wider(student, chosen):
                _lend(quantizer, chosen.format)
        else:
            name = "the plan"
            if (
                trainer.global_step == starts[-1]
            ):  # later than that, a checkpoint has brought what was learned since
                for site, quantizer in coded_sites(student):
                    _bind_anew(site, quantizer)
        if trainer.is_global_zero and (self.current is not None or stage < len(self.stages)):
            print(f"\nBits: {name} from step {trainer.global_step} on.", flush=True)
        self.current = stage


def _bits(format: Format, shape: tuple[int, ...]) -> float:
    """Code bits a weight."""
    return format.code_bits(shape) / math.prod(shape)


def _plan_format(quantizer: FakeQuantizer) -> Format:
    """The format that the plan gave, whatever is lent."""
    format = quantizer._modules["format"]
    assert isinstance(format, Format)
    return format


def _lend(quantizer: FakeQuantizer, format: Format) -> None:
    # an entry of the instance is found before its submodules, which stay as they are: in checkpoints and optimizer
    quantizer.__dict__["format"] = format
    quantizer._remembered = None


def _give_back(quantizer: FakeQuantizer) -> None:
    quantizer.__dict__.pop("format", None)
    quantizer._remembered = None


@torch.no_grad()
def _bind_anew(site: Site, quantizer: FakeQuantizer) -> None:
    """Start what a format has of its own for a weight from the weight as it is now."""
    format = _plan_format(quantizer)
    if state := format.state_dict():
        fresh = Format.from_spec(format.spec()).bind(quantizer.view.matrix(full(site.weight.detach())))
        for name, tensor in fresh.state_dict().items():
            state[name].copy_(tensor)  # in place: the optimizer holds the parameter
