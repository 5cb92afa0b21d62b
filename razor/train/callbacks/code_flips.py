"""Whether training moves anything that will be stored: flips, scale drift, saturation.

The loss sees latent weights through their codes. A latent may wander for a thousand steps without its code
changing; what the packed model gains from training is codes that flip and scales that drift. If nothing flips, the
learning rate is too low; if a tenth flips at every look, it is too high, or the schedule too short to settle.
Saturation, the part of codes at either end of their range, shows scales that have become too small (for ternary
codes it is the part that is not zero).

*What it costs.* A look encodes, packs and compares every weight once: the time of three quantizations, for a model
of 135 million parameters on one CPU core 1.1 s, where forward and backward pass of 512 tokens take 4.6 s. Every 25
steps that is less than one percent. Kept between looks are the codes, packed as they would be stored: about the
size of the packed model, in memory (on the student's device) and in checkpoints, where a resumed run finds what to
compare with. Weights are looked at one after the other; nothing else is copied.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from razor.quant import Codes, FakeQuantizer, Format, Grouped, RowMix, Site, sites
from razor.quant.anatomy import towers_of
from razor.quant.lending import WEIGHTS, slot
from razor.train.callbacks.base import RunCallback, RunFacts, check_every, check_whole, due
from razor.train.sharding import full


class CodeFlips(RunCallback):
    """Logs `codes/flipped`, `codes/scale_drift` and `codes/saturated`, of all and as `.../<layer>`.

    Flipped: part of the codes that differ from those at the last look. Scale drift: mean relative change of the
    scales since then. Layers are those of the decoder (`layer_03`) or of a tower
    (`vision/layer_03`), and every weight outside by its name.

    Args:
        every: optimizer steps between looks.

    Raises:
        RazorError: `every` is out of range.
    """

    def __init__(self, every: int = 25) -> None:
        super().__init__()
        check_every("code_flips", every)
        self.every = every
        self._last: dict[str, dict[str, Any]] = {}

    def check(self, run: RunFacts) -> None:  # noqa: D102 - see RunCallback
        formats = [quantizer.format for _, quantizer in coded_sites(run.student)]
        check_whole(
            "code_flips", (p for f in formats for p in f.parameters()), "encodes with learned scales and"
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The first look, unless a checkpoint brought the last one."""
        super().on_train_start(trainer, pl_module)
        if not self._last:
            self.look(pl_module.student)  # type: ignore[arg-type]

    def after_step(self, trainer: L.Trainer, pl_module: L.LightningModule, step: int) -> None:
        """Look, when it is time."""
        if due(step, self.every, trainer):
            self.show(pl_module, self.look(pl_module.student))  # type: ignore[arg-type]

    @torch.no_grad()
    def look(self, student: nn.Module) -> dict[str, float]:
        """What there is to say since the last look, which this one replaces.

        A weight whose format is another than at the last look (see `BitSchedule`) has not flipped but moved house:
        it counts for saturation alone.
        """
        counts: dict[str, list[float]] = defaultdict(lambda: [0.0] * 6)  # flips, of, drift, of, ends, of
        towers = {id(part): name for name, tower in towers_of(student).items() for part in tower.modules()}
        for site, quantizer in coded_sites(student):
            format, matrix = quantizer.format, quantizer.view.matrix(full(site.weight.detach()))
            codes = format.encode(matrix)
            if codes.scales is None:
                continue
            found = [0.0, 0.0, 0.0, 0.0, ends(format, codes, matrix), float(codes.values.numel())]
            spec, before = format.spec(), self._last.get(site.name)
            if before is not None and before["spec"] == spec:
                old = format.unpack(
                    {key: tensor.to(matrix.device) for key, tensor in before["packed"].items()}, codes.shape
                )
                found[:4] = compared(old, codes)
            self._last[site.name] = {"spec": spec, "packed": format.pack(codes)}
            for name in ("", f"/{layer_of(site.name, towers.get(id(site.module)))}"):
                counts[name] = [a + b for a, b in zip(counts[name], found, strict=True)]
        values: dict[str, float] = {}
        for name, (flips, codes_seen, drift, scales_seen, at_ends, of) in counts.items():
            if codes_seen:
                values[f"codes/flipped{name}"] = flips / codes_seen
                values[f"codes/scale_drift{name}"] = drift / scales_seen
            values[f"codes/saturated{name}"] = at_ends / of
        return values

    def state_dict(self) -> dict[str, Any]:
        """The codes of the last look, packed."""
        return {"last": self._last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self._last = state_dict["last"]


def coded_sites(student: nn.Module) -> Iterator[tuple[Site, FakeQuantizer]]:
    """Every quantized weight of a student once, with its quantizer."""
    seen: set[int] = set()
    for site in sites(student).values():
        own = site.module._modules.get(slot(WEIGHTS, site.attribute))
        if isinstance(own, FakeQuantizer) and id(own) not in seen:
            seen.add(id(own))
            yield site, own


def compared(old: Codes, new: Codes) -> list[float]:
    """Codes that differ, codes, summed relative change of scales, scales."""
    assert old.scales is not None and new.scales is not None
    flips = int((old.values != new.values).sum())
    drift = float((new.scales.float() / old.scales.float() - 1).abs().sum(dtype=torch.float64))
    return [float(flips), float(new.values.numel()), drift, float(new.scales.numel())]


def ends(format: Format, codes: Codes, matrix: Tensor) -> float:
    """Codes at the lowest or highest of their format."""
    if isinstance(format, RowMix):
        high = format.rows_high(matrix)
        parts = ((format.high, high.nonzero().squeeze(1)), (format.low, (~high).nonzero().squeeze(1)))
        return sum(ends(part, codes.rows(rows), matrix) for part, rows in parts)
    assert isinstance(format, Grouped)
    return float((codes.values.eq(format.lowest) | codes.values.eq(format.highest)).sum())


def layer_of(name: str, tower: str | None = None) -> str:
    """`model.layers.3.mlp.up_proj` -> `layer_03`, in a tower `vision/layer_03`; a name without a number stays."""
    number = re.search(r"\.(\d+)(\.|$)", name)
    beside = "" if tower is None else f"{tower}/"
    return f"{beside}layer_{int(number.group(1)):02d}" if number else name
