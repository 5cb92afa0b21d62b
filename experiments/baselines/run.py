"""Rounding after training, by five methods, in the same table as training.

    python experiments/baselines/run.py quant=w4,mixed_2p79_plus,w1p58_plus method=rtn,gptq,start
    python experiments/baselines/run.py quant=w4,w2 method=awq,autoround [activations=none] [evals=quick] [seed=0]

Round-to-nearest, GPTQ and `start` (what train.py start=gptq begins with) are Razor's; AWQ and AutoRound are another
library's (`library.py`), in an environment of its own. All look at the same rows of the same text and are scored
alike: embedding int4, activations and KV cache int8 by Razor, or `activations=none` for 16 bits of both. A cell is
a file in `results/RUNG/`; one that is there is not made again. README.md has the study.
"""

from __future__ import annotations

import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import study_cells  # noqa: E402
import study_making  # noqa: E402
import study_scores  # noqa: E402
import study_text  # noqa: E402
from students import LIBRARY, METHODS, Made, Maker, check_format  # noqa: E402

from razor.cli import config as cli  # noqa: E402
from razor.cli.guard import guarded  # noqa: E402
from razor.cli.teacher import teaching  # noqa: E402
from razor.errors import RazorError  # noqa: E402
from razor.evals import Benchmark  # noqa: E402
from razor.evals.held_out import score_held_out  # noqa: E402
from razor.quant import measure  # noqa: E402
from razor.train.facts import environment  # noqa: E402
from razor.train.run import quieten  # noqa: E402

DEFAULTS = {
    "quant": "w4",  # options of conf/quant
    "method": "rtn,gptq,start",
    "seed": "0",  # of the text's split and of which rows are looked at
    "activations": "a8_kv8",  # or none: 16-bit activations and KV cache
    "rows": "64",  # of training text that a method looks at
    "iters": "200",  # AutoRound's steps a layer
    "rung": "smollm2_135m",
    "model": "smollm2_135m",
    "tokens": "140000",  # of the text
    "held_out": "64",  # documents
    "sequence_length": "256",
    "evals": "none",  # quick: five tasks
    "limit": "100",  # rows a task
    "library": "on",  # or the folder of an environment that has auto-round
    "runs": "runs/baselines",
    "results": str(HERE / "results"),
}


@dataclass(frozen=True)
class Case:
    """A cell to be made."""

    quant: str
    method: str
    seed: int


def overrides_of(options: dict[str, str], case: Case) -> list[str]:
    """The config of train.py whose data, model and formats a cell has."""
    words = [
        f"model={options['model']}",
        f"quant={case.quant}",
        f"seed={case.seed}",
        "data=teacher_made",
        "data.source.mix={chat: 0.5, text: 0.5}",
        f"data.source.tokens={options['tokens']}",
        f"data.held_out={options['held_out']}",
        f"data.sequence_length={options['sequence_length']}",
        "trainer=cpu",
        f"evals={options['evals']}",
    ]
    if options["activations"] == "none":
        words += ["quant.activations=none", "quant.kv_cache=none"]
    return words


def make(options: dict[str, str], case: Case, path: Path) -> None:
    """Make and score one cell."""
    config = cli.composed("train", overrides_of(options, case))
    told = teaching(config)
    recipe = cli.build(config.quant)
    plan = recipe.plan(told.model.skeleton())
    benchmark: Benchmark = cli.build(config.evals)
    if benchmark.tasks:
        benchmark.limit = int(options["limit"])
    told.check()
    benchmark.prepare(told.model.tokenizer())
    corpus = told.corpus()
    maker = Maker(
        told.model,
        recipe,
        corpus.train,
        case.seed,
        int(options["rows"]),
        int(options["iters"]),
        options["library"],
    )
    begun = time.perf_counter()
    made: Made = maker.make(case.method, Path(options["runs"]) / options["rung"] / path.stem)
    seconds = time.perf_counter() - begun
    batches = list(corpus.held_out.batches(config.data.rows_per_batch))
    held_out = score_held_out(made.student, made.teacher, batches)
    scores = (
        benchmark.score(made.student.eval(), told.model.tokenizer(), path.stem) if benchmark.tasks else None
    )
    total = measure(told.model.skeleton(), plan)
    study_cells.write(
        path,
        {
            "study": "baselines",
            "rung": options["rung"],
            "model": config.model.name,
            "note": config.model.note,
            "quant": name_of(options, case),
            "w_a_kv": recipe.w_a_kv,
            "method": case.method,
            "seed": case.seed,
            "tokens": 0,
            "calibration_tokens": made.tokens,
            "calibration_rows": 0 if made.tokens == 0 else int(options["rows"]),
            "steps": 0,
            "learning_rate": None,
            "schedule": None,
            "bits_per_weight": total.total.bits_per_weight,
            "code_bits": total.code_bits,
            "ratio_paper": total.total.ratio_paper,
            "ratio_disk": total.total.ratio_disk,
            "bytes_disk": total.total.bytes_disk,
            "held_out": held_out.to_dict(),
            "scores": None if scores is None else scores.to_dict(),
            "curve": [],
            "seconds": seconds,
            "tokens_per_second": None,
            "limit": int(options["limit"]) if benchmark.tasks else None,
            "told": made.told,
            **environment(told.settings.device),
            "command": shlex.join(["python", "experiments/baselines/run.py", *sys.argv[1:]]),
        },
    )
    print(f"{path.stem}: KL {held_out.kl:.3f} nats, perplexity {held_out.perplexity:.4g}", flush=True)


def name_of(options: dict[str, str], case: Case) -> str:
    """What tables call the formats of a cell."""
    return case.quant if options["activations"] == "a8_kv8" else f"{case.quant}_weight_only"


def main(words: Sequence[str]) -> int:
    """Make the cells that are missing."""
    options = study_making.options_of(words, DEFAULTS)
    methods = study_making.chosen(options, "method", METHODS)
    study_making.chosen(options, "activations", ("a8_kv8", "none"))
    for key in ("rows", "iters", "limit", "tokens", "held_out", "sequence_length"):
        if study_making.numbers(options, key) == [0]:
            raise RazorError(f"{key}={options[key]} must be at least 1.")
    cases = [
        Case(*each)
        for each in itertools.product(
            options["quant"].split(","), methods, study_making.numbers(options, "seed")
        )
    ]
    for case in cases:  # says what is wrong before any work
        recipe: Any = cli.build(cli.composed("train", overrides_of(options, case)).quant)
        if case.method in LIBRARY:
            check_format(case.method, case.quant, recipe)
    study_text.place()
    for case in cases:
        folder = Path(options["results"]) / options["rung"]
        path = folder / f"{name_of(options, case)}_{case.method}_s{case.seed}.json"
        limit = 0 if options["evals"] == "none" else int(options["limit"])
        if path.is_file() and not study_scores.lacks(path, limit):
            print(f"{path.stem} is there already.", flush=True)
        else:
            make(options, case, path)
    return 0


if __name__ == "__main__":
    quieten()
    sys.exit(guarded(lambda: main(sys.argv[1:]), sys.argv))
