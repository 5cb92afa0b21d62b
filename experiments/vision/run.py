"""Image classifiers down the ladder of bits, with inputs of 16, 8 and 4 bits.

    python experiments/vision/run.py                                       # everything, seed 0
    python experiments/vision/run.py models=resnet18 quant=w4 inputs=a8,a4 seeds=0,1,2
    python experiments/vision/run.py dry_run=true                          # print the commands

A cell is one model at one width with one format of inputs and a seed: a file in `results/MODEL/`, made by a run of
train.py with the experiment of that model. Its teacher is trained by the first run that needs it. Cells that are
there are skipped, so the command can be stopped anywhere and given again. README.md has the tables (`make table`).
"""

from __future__ import annotations

import itertools
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
from study_making import chosen, numbers  # noqa: E402

from razor.cli.guard import guarded  # noqa: E402

EXPERIMENTS = {"resnet18": "vision/resnet18_mixed_2p79", "vit_s16": "vision/vit_s16_w1p58"}
WIDTHS = ("w4", "mixed_2p79", "mixed_1p88", "w1p58")
INPUTS = {
    "a16": ["quant.activations=none"],
    "a8": [],
    "a4": ["quant/format@quant.activations=int4"],
}
"""Words for train.py by the bits of inputs."""

DEFAULTS = {
    "models": ",".join(EXPERIMENTS),
    "quant": ",".join(WIDTHS),
    "inputs": ",".join(INPUTS),
    "seeds": "0",
    "results": str(HERE / "results"),
    "dry_run": "false",  # true: print the commands
}


@dataclass(frozen=True)
class Cell:
    """What is to be made: a model at a width with inputs of so many bits, and a seed."""

    model: str
    quant: str
    inputs: str
    seed: int

    def path(self, results: Path) -> Path:
        """Its file."""
        return study_cells.place(results.parent, self.model, self.quant, self.inputs, self.seed)

    def command(self, run: Path) -> list[str]:
        """Script and words that make it."""
        words = [f"experiment={EXPERIMENTS[self.model]}", f"quant={self.quant}", *INPUTS[self.inputs]]
        return study_making.train([*words, f"seed={self.seed}", "logger=csv"], run)


def cells_of(options: dict[str, str]) -> list[Cell]:
    """All that was asked for, seed by seed and model by model.

    Raises:
        RazorError: a value that is no choice.
    """
    models, inputs = chosen(options, "models", tuple(EXPERIMENTS)), chosen(options, "inputs", tuple(INPUTS))
    lists = numbers(options, "seeds"), models, inputs, chosen(options, "quant", WIDTHS)
    return [Cell(model, quant, own, seed) for seed, model, own, quant in itertools.product(*lists)]


def make(cell: Cell, results: Path) -> None:
    """Make a cell and, beside the first of a model, the teacher's; unless they are there."""
    path = cell.path(results)
    run = Path("runs/vision") / cell.model / path.stem
    command = cell.command(run)
    told = {"study": "vision", "rung": cell.model, "quant": cell.quant, "method": cell.inputs}
    study_making.make(path, command, told, run)
    teacher = study_cells.place(results.parent, cell.model, "w16", "teacher", 0)
    if not teacher.is_file():
        told |= {"quant": "w16", "method": "teacher", "command": shlex.join(["python", *command])}
        study_cells.write(teacher, study_cells.of_run(ROOT / run, "teacher", **told))


def main(words: Sequence[str]) -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""

    def job() -> int:
        options = study_making.options_of(words, DEFAULTS)
        cells = cells_of(options)
        for cell in cells:
            if chosen(options, "dry_run", ("true", "false")) == ["true"]:
                print("python " + shlex.join(cell.command(Path("RUN"))))
            else:
                make(cell, Path(options["results"]))
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
