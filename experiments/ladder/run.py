"""One model down the ladder of bits, by every method, at equal data and tokens.

    python experiments/ladder/run.py budget=small       # or make ladder budget=small: 18,500 tokens a cell
    python experiments/ladder/run.py budget=cpu quant=w1p58,mixed_2p79 methods=peer,ours seeds=0,1,2
    python experiments/ladder/run.py budget=gpu         # a hundred times the tokens

A rung is a budget of tokens. A cell is one model at one width by one method and seed: a file in `results/RUNG/`.
Cells that are there are skipped, so the command can be stopped anywhere and given again; `again=true` makes them in
`runs/ladder_again` instead and says how far they are from those here. README.md has the tables (`make table`).
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

import study_cells  # noqa: E402
import study_making  # noqa: E402
import study_scores  # noqa: E402
import study_text  # noqa: E402
from study_making import chosen, numbers  # noqa: E402

from razor.cli.guard import guarded  # noqa: E402
from razor.errors import RazorError  # noqa: E402

STUDIES = HERE.parent.relative_to(ROOT)
MODEL = "smollm2_135m"
BASELINES = {"rtn": "baselines", "gptq": "baselines"}
WIDTHS = ("w4", "mixed_2p79", "mixed_1p88", "w1p58")
RATES = {
    "peer": {"w4": 3e-4, "mixed_2p79": 3e-4, "mixed_1p88": 1e-3, "w1p58": 1e-3},
    "paper": {"w4": 3e-4, "mixed_2p79": 3e-4, "mixed_1p88": 1e-3, "w1p58": 1e-3},
    "qat": {"w4": 3e-4, "mixed_2p79": 3e-4, "mixed_1p88": 1e-3, "w1p58": 1e-3},
    "same_formats": {"w4": 1e-4, "mixed_2p79": 3e-4, "mixed_1p88": 3e-4, "w1p58": 3e-4},
    "even_rows": {"w4": 1e-4, "mixed_2p79": 3e-4, "mixed_1p88": 3e-4, "w1p58": 3e-4},
    "ours": {"w4": 1e-4, "mixed_2p79": 3e-4, "mixed_1p88": 3e-4, "w1p58": 3e-4},
}
"""Learning rates of the methods that train. The peer's is the best of a grid at 18,500 tokens, but for 4 bits
(experiments/vs_peer); `paper` and `qat` take it over, and ours is of single runs."""

FORMATS = {
    "w4": "w4_plus",
    "mixed_2p79": "auto_2p79_plus",
    "mixed_1p88": "auto_1p88_plus",
    "w1p58": "w1p58_plus",
}
"""Of the recipe for small budgets; those called auto are found, on rows that the start looks at too."""

SCORED_ROWS = 128
"""That the scores of a plan may look at, at most."""


@dataclass(frozen=True)
class Rung:
    """A budget.

    Attributes:
        steps: optimizer steps, of two rows or about 430 tokens.
        limit: rows a task; 0: no benchmarks.
        start: rows that a start looks at; their steps are taken off training, so that tokens are equal.
        more: other words for train.py.
        rows: in a step.
        text: words for the baselines, where the text is another one.
        methods: that are made unless others are asked for.
        quant: widths, likewise.
    """

    steps: int
    limit: int
    start: int
    more: tuple[str, ...] = ()
    rows: int = 2
    text: tuple[str, ...] = ()
    methods: str = "rtn,gptq,peer,ours"
    quant: str = ",".join(WIDTHS)


RUNGS = {
    "small": Rung(43, 0, 32, quant="mixed_2p79,w1p58"),
    "cpu": Rung(232, 500, 64),
    "gpu": Rung(
        2_320,
        2_000,
        1_280,
        ("trainer=gpu", "data.source.tokens=14_000_000", "data.rows_per_batch=20"),
        20,
        ("tokens=14000000",),
        "rtn,gptq,ours",
    ),
}
DEFAULTS = {
    "budget": "small",
    "quant": "",  # those of the rung
    "methods": "",
    "seeds": "0",
    "limit": "",  # rows a task, in place of the rung's
    "again": "false",
    "dry_run": "false",  # true: print the commands
}


@dataclass(frozen=True)
class Cell:
    """What is to be made: a width by a method with a seed."""

    rung: str
    quant: str
    method: str
    seed: int
    limit: int

    def path(self, studies: Path) -> Path:
        """Its file: rounding after training and the peer have studies of their own, and the former no budget."""
        rung = study_cells.rounded(self.rung) if self.method in BASELINES else self.rung
        study = studies / (BASELINES | {"peer": "vs_peer"}).get(self.method, "ladder")
        return study_cells.place(study, rung, self.quant, self.method, self.seed)

    def command(self, studies: Path, run: Path) -> tuple[Path | None, list[str]]:
        """The words that make it, and the folder of the run of train.py if it is one."""
        rung, path = RUNGS[self.rung], self.path(studies)
        evals = ["evals=quick", f"evals.limit={self.limit}"] if self.limit else ["evals=none"]
        named = [f"quant={self.quant}", f"seed={self.seed}", f"rung={path.parent.name}"]
        named += [f"results={path.parents[1]}"] if studies != STUDIES else []
        scored = [f"limit={self.limit}"] if self.limit else []
        if self.method in BASELINES:
            words = [f"method={self.method}", *named, *rung.text, evals[0], *scored]
            return None, ["experiments/baselines/run.py", *words]
        rate = f"{RATES[self.method][self.quant]:g}"
        if self.method == "peer":
            words = [f"steps={rung.steps}", f"learning_rate={rate}", evals[0], *scored, *rung.more]
            again = [f"runs={studies.parent / 'vs_peer'}"] if studies != STUDIES else []
            return None, ["experiments/vs_peer/run.py", *named, *words, *again]
        started = ["start=gptq", f"start.rows={rung.start}", "distill=small_budget"]
        looked = [f"score.rows={min(rung.start, SCORED_ROWS)}"] if "auto" in FORMATS[self.quant] else []
        recipe = {
            "ours": [*started, f"quant={FORMATS[self.quant]}", *looked],
            "even_rows": [*started, f"quant={self.quant}_plus"],
            "same_formats": [*started, f"quant={self.quant}"],
            "paper": [f"quant={self.quant}", "distill=eakld_afd"],
            "qat": [f"quant={self.quant}", "distill=ce"],
        }[self.method]
        steps = rung.steps - (rung.start // rung.rows if "start=gptq" in recipe else 0)
        budget = [f"trainer.learning_rate={rate}", f"trainer.max_steps={steps}", f"seed={self.seed}"]
        return run, study_making.train(["experiment=ladder", *recipe, *budget, *evals, *rung.more], run)


def cells_of(options: dict[str, str]) -> list[Cell]:
    """All that was asked for, seed by seed.

    Raises:
        RazorError: a value that is no choice.
    """
    (rung,) = chosen(options, "budget", tuple(RUNGS))[:1]
    limit = numbers(options, "limit")[0] if options["limit"] else RUNGS[rung].limit
    ways = [method for method in study_cells.METHODS if method in (*BASELINES, *RATES)]
    given = {key: options[key] or getattr(RUNGS[rung], key) for key in ("quant", "methods")}
    methods = chosen(given, "methods", ways)
    if rung == "gpu" and "peer" in methods:
        raise RazorError(
            "methods=peer: its side of the study trains on a CPU. budget=gpu methods=rtn,gptq,ours"
        )
    lists = numbers(options, "seeds"), chosen(given, "quant", WIDTHS), methods
    return [Cell(rung, quant, method, seed, limit) for seed, quant, method in itertools.product(*lists)]


def make(cell: Cell, studies: Path, runs: Path) -> None:
    """Make a cell and, beside the first run of a seed, the teacher's; unless they are there with their scores."""
    path = ROOT / cell.path(studies)
    run, command = cell.command(studies, runs / cell.rung / path.stem)
    told = {"study": "ladder", "rung": cell.rung, "quant": cell.quant, "method": cell.method}
    if run is None and path.is_file() and study_scores.lacks(path, cell.limit):
        study_making.done(command)
        return
    study_making.make(path, command, told, run)
    if run is not None and study_scores.lacks(path, cell.limit):
        study_scores.add(path, str(run), cell.limit)
    teacher = path.with_name(f"w16_teacher_s{cell.seed}.json")
    if run is not None and not teacher.is_file():
        told |= {"quant": "w16", "method": "teacher", "command": shlex.join(["python", *command])}
        study_cells.write(teacher, study_cells.of_run(ROOT / run, "teacher", **told))
    if run is not None and study_scores.lacks(teacher, cell.limit):
        study_scores.add(teacher, MODEL, cell.limit)


def compare(cells: Sequence[Cell], studies: Path) -> None:
    """How far cells that were made again are from those that are kept here."""
    print("\n| cell | held-out KL here | again | apart |\n|---|--:|--:|--:|")
    for cell in cells:
        paths = [ROOT / cell.path(root) for root in (STUDIES, studies)]
        if all(path.is_file() for path in paths):
            kept, made = (json.loads(path.read_text())["held_out"]["kl"] for path in paths)
            print(f"| {paths[0].stem} | {kept:.3f} | {made:.3f} | {100 * (made / kept - 1):+.1f} % |")


def main(words: Sequence[str]) -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""

    def job() -> int:
        options = study_making.options_of(words, DEFAULTS)
        cells = cells_of(options)
        again, shown = (chosen(options, key, ("true", "false"))[0] == "true" for key in ("again", "dry_run"))
        runs = Path("runs/ladder_again" if again else "runs/ladder")
        studies = runs / "studies" if again else STUDIES
        if shown:
            for cell in cells:
                print("python " + shlex.join(cell.command(studies, runs / cell.rung / "RUN")[1]))
            return 0
        study_text.place()
        for cell in cells:
            make(cell, studies, runs)
        if again:
            compare(cells, studies)
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
