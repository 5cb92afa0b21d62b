"""What an allocation found, for people and files.

A folder holds `plan.yaml` (read by `quant=plan`), `plan.csv` and `plan.png` (bits by layer and kind of matrix),
`scores.safetensors` (read by `razor allocate scores=`), `scores.csv`, `sensitivity.png`, `budgets.png` and
`allocation.json`, every number.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from razor.allocate import Answer, Budget, ScoreTable, Search
from razor.allocate.budget import UNITS
from razor.allocate.interactions import Interaction
from razor.allocate.refine import Refined
from razor.allocate.table import SCORES
from razor.evals.plan_table import PlanTable
from razor.models import ModelSource
from razor.recipe import PlanFile
from razor.storage import atomic_write

FOLDER, PLAN, NUMBERS = "allocation", "plan.yaml", "allocation.json"
"""In the folder of a run whose plan was found for it: where that lies, the plan, every number."""

FIGURES = tuple(f"{FOLDER}/{name}" for name in ("plan", "sensitivity", "budgets"))
"""Figures of it, in the folder of the run, without .png."""

POINTS = 25
"""Of the predicted curve."""


@dataclass(frozen=True)
class Point:
    """A plan of another size.

    Attributes:
        budget: of it.
        answer: the plan.
        kl: true KL on held-out text, nats; None: not measured.
    """

    budget: Budget
    answer: Answer
    kl: float | None = None


@dataclass
class Allocated:
    """What was found.

    Attributes:
        search: by which.
        table: its scores.
        model: its name.
        answer: the plan.
        refined: what the trials on true KL made of the first plan; None: there were none.
        kl: true KL of the plan on held-out text, nats; None: not measured.
        base_kl: the same with all open weights at 16 bits.
        interactions: of some pairs.
        points: plans of other sizes.
        seconds: that all of it took, measuring the table included.
    """

    search: Search
    table: ScoreTable
    model: str
    answer: Answer
    refined: Refined | None = None
    kl: float | None = None
    base_kl: float | None = None
    interactions: Sequence[Interaction] = ()
    points: Sequence[Point] = field(default=(), repr=False)
    seconds: float = 0.0

    @classmethod
    def of(
        cls, search: Search, table: ScoreTable, model: str, interactions: int = 0, curve: int = 0
    ) -> Allocated:
        """Find the plan, refine it, hold it against true KL.

        Args:
            search: ready.
            table: its scores.
            model: its name.
            interactions: pairs to look at.
            curve: plans of other sizes to measure.
        """
        begun, automatic = time.perf_counter(), search.automatic
        answer = automatic.answer(search.space, table)
        refined = search.refined(answer, table) if automatic.swaps else None
        answer = refined.answer if refined else answer
        found = cls(search, table, model, answer, refined)
        if automatic.check:
            found.kl, found.base_kl = search.held_out_kl(answer.formats), search.held_out_kl()
        if interactions:
            found.interactions = search.interactions(answer.formats, interactions)
        predicted = [Point(*each) for each in search.curve(table, POINTS)]
        true = [
            Point(budget, each, search.held_out_kl(each.formats))
            for budget, each in (search.curve(table, curve) if curve else [])
        ]
        found.points = [*predicted, *true]
        found.seconds = time.perf_counter() - begun + table.seconds
        return found

    def summary(self) -> dict[str, Any]:
        """The figures of `razor allocate json=true`, but for the place of the plan."""
        automatic, size = self.search.automatic, self.answer.size
        held_out = None if self.kl is None else self.search.held_out.tokens
        return {
            "model": self.model,
            "name": automatic.name,
            "budget": automatic.budget.amount,
            "unit": automatic.budget.unit,
            "options": automatic.options,
            "granularity": automatic.granularity,
            "fits": automatic.fits,
            "coupled": automatic.coupled,
            "code_bits": size.code_bits,
            "bits_per_weight": size.total.bits_per_weight,
            "ratio": size.total.ratio_paper,
            "bytes": size.total.bytes_disk,
            "score": self.table.measured.score,
            "predicted": self.answer.predicted,
            "predicted_unit": self.table.measured.unit,
            "gap": self.answer.gap,
            "calibration_tokens": self.table.measured.tokens,
            "kl": self.kl,
            "kl_at_16_bits": self.base_kl,
            "kl_tokens": held_out,
            "refined": None if self.refined is None else self._trials(self.refined),
            "interactions": [each.to_dict() for each in self.interactions],
            "seconds": self.seconds,
        }

    @staticmethod
    def _trials(refined: Refined) -> dict[str, Any]:
        tried = [{"doubted": name, "factor": factor, "kl": kl} for name, factor, kl in refined.tried]
        return {"kl_before": refined.first, "kl_after": refined.kl, "tried": tried}

    def to_dict(self) -> dict[str, Any]:
        """What allocation.json holds."""
        groups = zip(self.search.space.groups, self.answer.labels, strict=True)
        curve = [
            {
                "budget": point.budget.amount,
                "code_bits": point.answer.size.code_bits,
                "bits_per_weight": point.answer.size.total.bits_per_weight,
                "predicted": point.answer.predicted,
                "kl": point.kl,
            }
            for point in self.points
        ]
        chosen = {" + ".join(group): label for group, label in groups}
        return self.summary() | {"curve": curve, "chosen": chosen, "types": self._types()}

    def _types(self) -> dict[str, str]:
        """File type of each target, if the plan is to fit one."""
        found: dict[str, str] = {}
        for name, target in self.search.space.targets.items():
            spec = self.answer.formats[name].spec()
            for option, own in target.formats.items():
                if own.spec() == spec and option in target.types:
                    found[name] = target.types[option]
        return found

    def text(self) -> str:
        """A few lines for people."""
        automatic, size, table = self.search.automatic, self.answer.size, self.table.measured
        groups = Counter(self.answer.labels)
        shares = ", ".join(f"{count} {label}" for label, count in groups.most_common(6))
        more = "" if len(groups) <= 6 else f" and {len(groups) - 6} other mixtures"
        looked = f" on {table.tokens:,} tokens" if table.tokens else ""
        lines = [
            f"{self.model}, {automatic.name}: {size.code_bits:.3f} code bits in the decoder, "
            f"{size.total.bits_per_weight:.3f} bits per weight, {size.total.bytes_disk / 1e6:.1f} MB",
            f"budget   {automatic.budget.amount:g} {UNITS[automatic.budget.unit]}, options "
            f"{', '.join(automatic.options)}, by {automatic.granularity}",
            f"chosen   {shares}{more}",
            f"by       {table.score}{looked}: {self.answer.predicted:.4g} {table.unit} predicted",
        ]
        if self.answer.gap:
            lines.append(f"gap      by these scores no plan is better by more than {self.answer.gap:.2g}")
        if self.refined is not None:
            lines.append(
                f"swaps    KL {self.refined.first:.3f} to {self.refined.kl:.3f} nats on calibration text, "
                f"{len(self.refined.tried)} plans tried"
            )
        if self.interactions:
            gaps = [each.together - each.alone for each in self.interactions]
            mean = sum(gaps) / len(gaps)
            lines.append(f"pairs    {len(gaps)}: together {mean:+.4f} nats on average beyond the sum of both")
        if self.kl is not None:
            lines.append(
                f"true KL  {self.kl:.3f} nats on {self.search.held_out.tokens:,} held-out tokens "
                f"({self.base_kl:.3f} with 16-bit weights)"
            )
        return "\n".join([*lines, f"time     {self.seconds:.0f} s"])

    def write(self, folder: Path, source: ModelSource) -> list[Path]:
        """Write everything; returns the files."""
        from razor.evals.allocation_figures import draw_budgets, draw_sensitivity

        automatic = self.search.automatic
        paths = PlanTable(source, PlanFile(automatic.name, self.answer.plan)).write(folder)
        self.table.save(folder / SCORES)
        self.table.write_csv(folder / "scores.csv", self.search.space)
        numbers, losses = self.to_dict(), list(self.table.of_options(self.search.space))
        draw_sensitivity(numbers, losses, folder / "sensitivity.png")
        draw_budgets(numbers, folder / "budgets.png")
        with atomic_write(folder / NUMBERS) as temporary:
            temporary.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
        names = (SCORES, "scores.csv", "sensitivity.png", "budgets.png", NUMBERS)
        return [*paths, *(folder / name for name in names)]


def of_run(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What the report of a run says of the plan that was found for it, and its figures; nothing if none was."""
    path = folder / FOLDER / NUMBERS
    if not path.is_file():
        return {}, []
    numbers = json.loads(path.read_text(encoding="utf-8"))
    told = {key: value for key, value in numbers.items() if key not in ("curve", "chosen", "types")}
    return {"allocation": told}, [name for name in FIGURES if (folder / f"{name}.png").is_file()]
