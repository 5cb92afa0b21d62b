"""What is left of an allocation after training: plans that were found against every n-th row, at equal tokens.

    python experiments/allocation/trained.py plans=mixed_2p79:runs/found/plan.yaml
    python experiments/allocation/trained.py plans=mixed_2p79:A/plan.yaml,mixed_1p88:B/plan.yaml recipe=ours
        seeds=0,1,2 [steps=43] [every_nth=true] [dry_run=true]

A plan is given as WIDTH:FILE, and its folder (or the file, if that is not called plan.yaml) names it in tables.
With it, every n-th row in the same formats is trained (`every_nth`: quant=mixed_2p79 or mixed_1p88), by the same
recipe, on the same text and tokens: the ladder's `budget=small`, 43 steps. `recipe=paper` is the paper's losses,
`recipe=ours` a start by GPTQ and experiment=small_budget's losses, whose rows are taken off the steps. What the
score of a plan looked at is told in the cell (`plan_tokens`): it is found once for many runs; a start's rows are
among those. A cell is a file in `results/trained/STEPS/`, beside it a copy of its plan; one that is there is kept.
"""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent)]

import study_making  # noqa: E402
import study_text  # noqa: E402

from razor.cli.guard import guarded  # noqa: E402
from razor.errors import RazorError  # noqa: E402
from razor.evals.allocation_report import NUMBERS  # noqa: E402
from razor.quant import Plan  # noqa: E402

WIDTHS = ("mixed_2p79", "mixed_1p88")
EVERY_NTH = "every_nth"
START_ROWS, ROWS = 32, 2
"""Rows that the start looks at, and rows in a step; both as on the ladder's small rung."""

RECIPES = {
    "paper": ({"mixed_2p79": 3e-4, "mixed_1p88": 1e-3}, 0, ("distill=eakld_afd",)),
    "ours": (
        dict.fromkeys(WIDTHS, 3e-4),
        START_ROWS,
        ("start=gptq", f"start.rows={START_ROWS}", "distill=small_budget"),
    ),
}
"""Learning rates by width (the ladder's), rows that are looked at before training, words of train.py."""

DEFAULTS = {
    "plans": "",  # WIDTH:FILE, ...
    "recipe": "ours",
    "seeds": "0",
    "steps": "43",  # of two rows, about 430 tokens, those of a start included
    "every_nth": "true",  # false: the plans alone
    "more": "",  # further words of train.py, separated by spaces
    "results": str(HERE / "results" / "trained"),
    "runs": "runs/allocation",
    "dry_run": "false",  # true: print the commands
}


@dataclass(frozen=True)
class Case:
    """A cell to be made.

    Attributes:
        quant: the width.
        plan: the file of a plan; None: every n-th row.
        recipe: how it is trained.
        seed: of the run.
    """

    quant: str
    plan: Path | None
    recipe: str
    seed: int

    @property
    def method(self) -> str:
        """What tables and files call it."""
        if self.plan is None:
            return f"{EVERY_NTH}_{self.recipe}"
        return f"{self.plan.parent.name if self.plan.stem == 'plan' else self.plan.stem}_{self.recipe}"

    def words(self, steps: int, more: Sequence[str]) -> list[str]:
        """Of train.py."""
        rate, looked, own = RECIPES[self.recipe]
        quant = [f"quant={self.quant}"] if self.plan is None else ["quant=plan", f"quant.plan={self.plan}"]
        left = steps - looked // ROWS
        budget = [
            f"trainer.learning_rate={rate[self.quant]:g}",
            f"trainer.max_steps={left}",
            f"seed={self.seed}",
        ]
        return ["experiment=ladder", *quant, *own, *budget, *more]


def cases_of(options: dict[str, str]) -> list[Case]:
    """All cells, every n-th row first.

    Raises:
        RazorError: a value that is no choice, a plan that is none, or steps that a start would use up.
    """
    plans: list[tuple[str, Path]] = []
    for word in filter(None, options["plans"].split(",")):
        width, colon, file = word.partition(":")
        if not colon or width not in WIDTHS:
            raise RazorError(f"plans={word}: WIDTH:FILE, the width one of {', '.join(WIDTHS)}.")
        Plan.load(Path(file))
        plans.append((width, Path(file)))
    if not plans:
        raise RazorError(f"plans= is empty: plans={WIDTHS[0]}:FILE, a plan.yaml of razor allocate.")
    recipes = study_making.chosen(options, "recipe", tuple(RECIPES))
    (steps,), seeds = study_making.numbers(options, "steps"), study_making.numbers(options, "seeds")
    for recipe in recipes:
        if steps <= RECIPES[recipe][1] // ROWS:
            raise RazorError(
                f"steps={steps}: recipe={recipe} uses {RECIPES[recipe][1] // ROWS} for its start."
            )
    with_base = study_making.chosen(options, "every_nth", ("true", "false"))[0] == "true"
    bases = [(width, None) for width in dict.fromkeys(width for width, _ in plans)] if with_base else []
    return [
        Case(width, plan, recipe, seed)
        for seed, recipe, (width, plan) in itertools.product(seeds, recipes, [*bases, *plans])
    ]


def main(words: Sequence[str]) -> int:
    """Make the cells that are missing."""
    options = study_making.options_of(words, DEFAULTS)
    cases = cases_of(options)
    shown = study_making.chosen(options, "dry_run", ("true", "false"))[0] == "true"
    (steps,), more = study_making.numbers(options, "steps"), options["more"].split()
    if not shown:
        study_text.place()
    for case in cases:
        path = Path(options["results"]) / str(steps) / f"{case.quant}_{case.method}_s{case.seed}.json"
        run = Path(options["runs"]) / str(steps) / path.stem
        command = study_making.train(case.words(steps, more), run)
        if shown:
            print("python " + shlex.join(command))
            continue
        told = {"study": "allocation", "rung": f"trained_{steps}", "quant": case.quant, "method": case.method}
        if study_making.make(path, command, told | {"plan_tokens": looked_at(case.plan)}, run) and case.plan:
            shutil.copyfile(case.plan, path.with_suffix(".yaml"))
    return 0


def looked_at(plan: Path | None) -> int | None:
    """Tokens that the scores of a plan looked at, from what `razor allocate` left beside it; None: unknown."""
    if plan is None:
        return 0
    numbers = plan.with_name(NUMBERS)
    return int(json.loads(numbers.read_text())["calibration_tokens"]) if numbers.is_file() else None


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:]), sys.argv))
