"""The peer's own package, trained on the batches of Razor's students and scored beside them.

    python experiments/vs_peer/run.py quant=mixed_2p79 steps=110 learning_rate=3e-4,1e-3,3e-3 \
        schedule=cosine,constant [seed=0] [rung=smollm2_135m] [losses=qwen3] [layout=joined] [evals=quick]

A list is a grid: each cell is a file in `results/RUNG/grid/`, and one that is there is not made again. The best
cell of the grid by held-out KL is the tuned peer, `results/RUNG/QUANT_peer_sSEED.json`, and it alone is scored on
tasks. A word with a dot in it (`data.held_out=64`) goes to train.py's config as it is. README.md has the study.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1] / "benchmarks")]

import study_text  # noqa: E402
from peer.sides import cores  # noqa: E402
from peer_batches import Run, written  # noqa: E402
from peer_best import GRID, grid, keep_best, kl_of, show, write_tuned  # noqa: E402
from peer_cell import kept, result  # noqa: E402
from peer_job import Cell  # noqa: E402

from razor.cli import config as cli  # noqa: E402
from razor.cli.guard import guarded  # noqa: E402
from razor.errors import RazorError, did_you_mean  # noqa: E402

DEFAULTS = {
    "methods": "peer",
    "quant": "mixed_2p79",
    "steps": "110",
    "learning_rate": "1e-3",
    "schedule": "cosine",
    "seed": "0",
    "rung": "smollm2_135m",
    "losses": "qwen3",  # whose published weights of the losses: mobilellm
    "layout": "joined",  # a micro-batch's documents in one row; documents: each in a row of its own
    "model": "smollm2_135m",
    "evals": "none",  # quick: the tuned cell on five tasks
    "limit": "100",  # rows a task
    "threads": "0",  # 0: all cores
    "peer": "on",  # or the folder of the peer's environment
    "runs": "runs/vs_peer",
    "results": str(HERE / "results"),
}

DATA = {
    "data": "teacher_made",
    "data.source.mix": "{chat: 0.5, text: 0.5}",
    "data.source.tokens": "140000",
    "data.held_out": "64",
    "trainer": "cpu",
}
"""Overrides of train.py that all studies of this table share."""


def options_of(words: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Options of this script, and overrides of train.py.

    Raises:
        RazorError: an unknown name, a word that is no option, or a method that is not made here.
    """
    options, overrides = dict(DEFAULTS), dict(DATA)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise RazorError(f"'{word}' is no option: name=value.")
        if "." in key or key in DATA:
            overrides[key] = value
        elif key in options:
            options[key] = value
        else:
            raise RazorError(f"There is no option {key}.{did_you_mean(key, options)}")
    for key in ("methods", "quant", "learning_rate", "schedule", "seed", "losses", "layout"):
        if not all(part.strip() for part in options[key].split(",")):
            raise RazorError(f"{key}={options[key]} has an empty place.")
    for method in options["methods"].split(","):
        if method not in METHODS:
            raise RazorError(
                f"methods={method}. Choices: {', '.join(METHODS)} (paper and ours are runs of train.py: README.md)."
            )
    for key in ("steps", "limit", "threads"):
        whole(key, options[key], 0 if key == "threads" else 1)
    return options, overrides


def whole(key: str, value: str, least: int) -> int:
    """A whole number.

    Raises:
        RazorError: it is none, or too small.
    """
    if not value.isdigit() or int(value) < least:
        raise RazorError(f"{key}={value} must be a whole number of at least {least}.")
    return int(value)


def grid_of(options: dict[str, str], quant: str, seed: int) -> list[Cell]:
    """The cells of a width and a seed.

    Raises:
        RazorError: a value that train.py or the peer does not know.
    """
    lists = [options[key].split(",") for key in ("losses", "layout", "learning_rate", "schedule")]
    found = []
    for losses, layout, rate, schedule in itertools.product(*lists):
        try:
            number = float(rate)
        except ValueError as error:
            raise RazorError(f"learning_rate={rate} is no number.") from error
        steps = int(options["steps"])
        found.append(Cell(options["rung"], quant, number, schedule, seed, steps, losses, layout))
    return found


def peer(options: dict[str, str], overrides: dict[str, str]) -> None:
    """All cells of the peer, and the tuned one of each width and seed."""
    pairs = list(itertools.product(options["quant"].split(","), options["seed"].split(",")))
    grids = [grid_of(options, quant, whole("seed", seed, 0)) for quant, seed in pairs]
    data = [f"{key}={value}" for key, value in overrides.items()]
    shared = [f"model={options['model']}", "evals=" + options["evals"], *data]
    for cell in itertools.chain(*grids):  # says what is wrong before anything is made
        cli.build(cli.composed("train", [*shared, *cell.overrides]).trainer)
    for cells in grids:
        tune(cells, shared, options, overrides)


def tune(cells: list[Cell], shared: list[str], options: dict[str, str], overrides: dict[str, str]) -> None:
    """Make the cells of one width and seed; write the best one, with its scores, as the tuned peer."""
    first = cells[0]
    results, folder = Path(options["results"]) / first.rung, Path(options["runs"]) / first.rung
    run = Run.of([*shared, *first.overrides])
    benchmark = cli.build(run.config.evals)
    benchmark.limit = int(options["limit"])
    benchmark.prepare(run.teaching.model.tokenizer())  # fails now, if at all
    files = written(run, folder / f"batches_s{first.seed}_{first.steps}")
    threads = int(options["threads"]) or cores()
    for cell in cells:
        own = run.again([*shared, *cell.overrides])

        def make(cell: Cell = cell, own: Run = own) -> dict[str, Any]:
            return result(cell, own, files, folder / cell.name, options["peer"], threads)

        path = results / GRID / f"{cell.name}.json"
        found = kept(path, cell, make, command_of(cell, options, overrides))
        print(f"{cell.name}: held-out KL {show(kl_of(found))}", flush=True)
        keep_best(grid(results, first), folder)
    write_tuned(grid(results, first), run, folder, results, benchmark)


def command_of(cell: Cell, options: dict[str, str], overrides: dict[str, str]) -> list[str]:
    """What makes this cell alone."""
    own = {"quant": cell.quant, "learning_rate": f"{cell.learning_rate:g}", "schedule": cell.schedule}
    own |= {"seed": str(cell.seed), "losses": cell.losses, "layout": cell.layout}
    given = options | own
    words = [f"{key}={given[key]}" for key in DEFAULTS if given[key] != DEFAULTS[key]]
    words += [f"{key}={value}" for key, value in overrides.items() if DATA.get(key) != value]
    return ["python", "experiments/vs_peer/run.py", *words]


METHODS: dict[str, Callable[[dict[str, str], dict[str, str]], None]] = {"peer": peer}
"""Who is trained here. `paper` and `ours` are runs of train.py, whose cells have the same form."""


def main(words: Sequence[str]) -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""

    def job() -> int:
        options, overrides = options_of(words)
        study_text.place()
        for method in options["methods"].split(","):
            METHODS[method](options, overrides)
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
