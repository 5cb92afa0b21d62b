"""Which matrix deserves which bits: plans that were found against every n-th row, before any training.

    python experiments/allocation/run.py
    python experiments/allocation/run.py quant=mixed_2p79 score=fisher granularity=matrix,row swaps=0,24 [seed=0]
    python experiments/allocation/run.py quant=mixed_2p79 score=fisher,autoscheme granularity=matrix
        options=seq_2_mse,int3_mse,int4_mse rung=integers                     # beside another library's allocation

For every width there is the paper's mixing (`every_nth`: quant=mixed_2p79, mixed_1p88), as many rows chosen by
squared error (`by_error`), and a plan for each score and granularity that has at most the same bits per weight,
embedding, scales and maps of rows included. Text, held-out rows and formats around the decoder are those of the
other studies. A cell is a file in `results/RUNG/`; one that is there is not made again. README.md has the study.
"""

from __future__ import annotations

import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import autoscheme  # noqa: E402
import study_cells  # noqa: E402
import study_making  # noqa: E402
import study_text  # noqa: E402

from razor.allocate import Automatic, Search  # noqa: E402
from razor.cli import config as cli  # noqa: E402
from razor.cli.allocate import ready, settled  # noqa: E402
from razor.cli.guard import guarded  # noqa: E402
from razor.cli.teacher import teaching  # noqa: E402
from razor.errors import RazorError  # noqa: E402
from razor.models import ModelSource  # noqa: E402
from razor.quant import Format, ModelSize, measure  # noqa: E402
from razor.recipe import PlanFile  # noqa: E402
from razor.train.facts import environment  # noqa: E402
from razor.train.run import quieten  # noqa: E402

DEFAULTS = {
    "quant": "mixed_2p79,mixed_1p88",  # whose bits per weight a plan has to keep
    "score": "fisher,activation_error,weight_error,kl",
    "granularity": "matrix,row",
    "swaps": "0",  # plans tried on true KL
    "seed": "0",  # of the text's split, of the rows that are looked at
    "options": "ternary,int2,int3,int4",
    "rows": "64",  # of training text that a score looks at
    "kl_rows": "8",  # of them for true KL: score=kl, swaps
    "rung": "smollm2_135m",
    "model": "smollm2_135m",
    "tokens": "140000",  # of the text
    "mix": "chat: 0.5, text: 0.5",  # kinds of it
    "held_out": "64",  # documents
    "sequence_length": "256",
    "library": "on",  # score=autoscheme: or the folder of an environment that has auto-round
    "runs": "runs/allocation",
    "results": str(HERE / "results"),
}
BASES = ("every_nth", "by_error")


@dataclass(frozen=True)
class Case:
    """A cell to be made.

    Attributes:
        quant: the paper's mixing of that width.
        seed: of the text.
        score: one of razor.allocate, or of `BASES`.
        granularity: of the plan; "row" for `BASES`.
        swaps: plans tried on true KL.
    """

    quant: str
    seed: int
    score: str
    granularity: str = "row"
    swaps: int = 0

    @property
    def method(self) -> str:
        """What tables and files call it."""
        if self.score in BASES:
            return self.score
        return f"{self.score}_{self.granularity}" + (f"_swaps{self.swaps}" if self.swaps else "")


def words_of(options: dict[str, str], case: Case) -> list[str]:
    """The words of `razor allocate` whose text, model, options and score a cell has."""
    name = "weight_error" if case.score == autoscheme.NAME else case.score  # it measures by itself
    score = () if case.score in BASES else (f"score={name}", f"granularity={case.granularity}")
    rows = {"weight_error": (), autoscheme.NAME: (), "kl": (f"score.rows={options['kl_rows']}",)}
    own = () if case.score in BASES else rows.get(case.score, (f"score.rows={options['rows']}",))
    return [
        f"model={options['model']}",
        f"seed={case.seed}",
        "data=teacher_made",
        f"data.source.mix={{{options['mix']}}}",
        f"data.source.tokens={options['tokens']}",
        f"data.held_out={options['held_out']}",
        f"data.sequence_length={options['sequence_length']}",
        "trainer=cpu",
        f"options=[{options['options']}]",
        *score,
        *own,
        f"kl_rows={options['kl_rows']}",
        f"check={options['held_out']}",
    ]


class Maker:
    """Makes cells, with one model in memory for all of a seed."""

    def __init__(self, options: dict[str, str]) -> None:
        self.options = options
        self._search: Search | None = None
        self._seed = -1

    def search(self, case: Case, config: Any, automatic: Automatic) -> Search:
        """A search for a cell; the model and what its teacher says of the held-out rows are kept between cells."""
        if self._search is None or self._seed != case.seed:
            self._search, self._seed = ready(config, automatic, True)[0], case.seed
        return self._search.after(automatic)

    def make(self, case: Case, path: Path) -> None:
        """Make and score one cell."""
        config = cli.composed("allocate", words_of(self.options, case))
        source = cli.model_source(config)
        base = cli.composed("size", [f"model={self.options['model']}", f"quant={case.quant}"])
        if case.score == "by_error":
            base.quant.weights.rows = "error"
        recipe = cli.build(base.quant)
        plan = recipe.plan(source.skeleton())
        bits = measure(source.skeleton(), plan).total.bits_per_weight
        config.budget, config.unit, config.swaps = bits, "bpw", case.swaps
        search = self.search(case, config, settled(config))
        formats = {name: plan.modules[name].weights for name in search.space.targets}
        told: dict[str, Any] = {"predicted": None, "predicted_unit": None, "calibration_kl": None}
        told |= {"calibration_tokens": 0, "seconds": 0.0}
        if case.score not in BASES:
            formats, more = self._found(case, search, source, path)
            told, plan = told | more, search.space.plan(formats)
        size = measure(source.skeleton(), plan)
        told_of = PlanFile(case.quant, plan)
        told_of.plan(source.skeleton())
        kl = search.held_out_kl(formats)
        told |= {"model": config.model.name, "note": config.model.note, "w_a_kv": told_of.w_a_kv}
        held_out = {"kl": kl, "perplexity": None, "agreement": None, "tokens": search.held_out.tokens}
        told |= {"held_out": held_out, **environment(teaching(config).settings.device)}
        study_cells.write(path, self._cell(case, size) | told)
        print(
            f"{path.stem}: KL {kl:.3f} nats at {size.total.bits_per_weight:.4f} bits per weight", flush=True
        )

    def _cell(self, case: Case, size: ModelSize) -> dict[str, Any]:
        """What a cell says of its plan's making and size; nothing was trained."""
        return {
            "study": "allocation",
            "rung": self.options["rung"],
            "quant": case.quant,
            "method": case.method,
            "seed": case.seed,
            "tokens": 0,
            "steps": 0,
            "learning_rate": None,
            "schedule": None,
            "bits_per_weight": size.total.bits_per_weight,
            "code_bits": size.code_bits,
            "ratio_paper": size.total.ratio_paper,
            "ratio_disk": size.total.ratio_disk,
            "bytes_disk": size.total.bytes_disk,
            "scores": None,
            "curve": [],
            "tokens_per_second": None,
            "options": self.options["options"],
            "score": case.score,
            "granularity": case.granularity,
            "swaps": case.swaps,
            "command": shlex.join(["python", "experiments/allocation/run.py", *sys.argv[1:]]),
        }

    def _found(
        self, case: Case, search: Search, source: ModelSource, path: Path
    ) -> tuple[dict[str, Format], dict[str, Any]]:
        """Formats of the plan; what is told of it, tokens looked at and seconds that scores took among that."""
        if case.score == autoscheme.NAME:
            folder = Path(self.options["runs"]) / path.stem
            return autoscheme.found(
                search, source, int(self.options["rows"]), folder, self.options["library"]
            )
        table, begun = search.table(), time.perf_counter()
        answer = search.automatic.answer(search.space, table)
        told: dict[str, Any] = {"predicted": answer.predicted, "predicted_unit": table.measured.unit}
        if search.automatic.swaps:
            refined = search.refined(answer, table)
            answer, told["calibration_kl"] = refined.answer, [refined.first, refined.kl]
        told |= {"calibration_tokens": table.measured.tokens}
        told |= {"seconds": table.seconds + time.perf_counter() - begun}
        return dict(answer.formats), told


def cases_of(options: dict[str, str]) -> list[Case]:
    """All cells, the paper's first; a score that knows no rows has none by rows."""
    seeds, swaps = study_making.numbers(options, "seed"), study_making.numbers(options, "swaps")
    quants, scores = options["quant"].split(","), options["score"].split(",")
    granularities = study_making.chosen(options, "granularity", ("matrix", "row", "block"))
    cases = [Case(quant, seed, base) for quant, seed, base in itertools.product(quants, seeds, BASES)]
    for score, granularity, quant, seed, swap in itertools.product(
        scores, granularities, quants, seeds, swaps
    ):
        if score == autoscheme.NAME:
            cases += [Case(quant, seed, score, granularity)] if granularity == "matrix" else []
        elif granularity != "row" or cli.build(cli.composed("allocate", [f"score={score}"]).score).by_rows:
            cases.append(Case(quant, seed, score, granularity, swap))
    return cases


def check_same(path: Path, options: dict[str, str]) -> None:
    """Raise RazorError if a cell that is there was made with other options of plans."""
    there = json.loads(path.read_text(encoding="utf-8")).get("options")
    if there != options["options"]:
        raise RazorError(
            f"'{path}' is of options={there}, not {options['options']}: give results= another folder, or remove it."
        )


def main(words: Sequence[str], make: Callable[..., Any] = Maker) -> int:
    """Make the cells that are missing."""
    options = study_making.options_of(words, DEFAULTS)
    for key in ("rows", "kl_rows", "tokens", "held_out", "sequence_length"):
        if study_making.numbers(options, key) == [0]:
            raise RazorError(f"{key}={options[key]} must be at least 1.")
    maker, folder = make(options), Path(options["results"]) / options["rung"]
    study_text.place()
    for case in cases_of(options):
        path = folder / f"{case.quant}_{case.method}_s{case.seed}.json"
        if path.is_file():
            check_same(path, options)
            print(f"{path.stem} is there already.", flush=True)
        else:
            maker.make(case, path)
    return 0


if __name__ == "__main__":
    quieten()
    sys.exit(guarded(lambda: main(sys.argv[1:]), sys.argv))
