"""How far each layer of small models is from the teacher's: relative squared error of its output on held-out text.

    python experiments/ladder/layers.py budget=cpu quant=w1p58 [methods=rtn,gptq,peer,ours] [seed=0] [rows=16]

The models are those of one rung and width of the ladder, from what making their cells left behind: packed models of
runs of train.py, latents of the peer. Rounding after training left none, so it is done again: seconds, or a few
minutes of GPTQ. A word with a dot in it (`data.source.tokens=14_000_000`) goes to train.py's config as it is.

For layer i: mean over tokens of |h - t|^2 / |t|^2 of its output, the last one after the final norm. It is written
to `layers.json`, from which `make table` draws a figure.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STUDIES = HERE.parent
sys.path += [
    str(STUDIES.parent / "benchmarks"),
    *(str(STUDIES / name) for name in (".", "baselines", "vs_peer")),
]

import study_cells  # noqa: E402
import study_text  # noqa: E402
import torch  # noqa: E402
from peer_batches import Run  # noqa: E402
from peer_cell import student_of  # noqa: E402
from peer_job import LATENTS, Cell  # noqa: E402
from students import Maker  # noqa: E402
from study_making import chosen, numbers, options_of  # noqa: E402
from torch import Tensor  # noqa: E402

import razor  # noqa: E402
from razor.cli import config as cli  # noqa: E402
from razor.cli.guard import guarded  # noqa: E402
from razor.distill import Batch  # noqa: E402
from razor.errors import RazorError  # noqa: E402
from razor.export.compressed import packed_folder  # noqa: E402
from razor.models.record import decoder_of  # noqa: E402
from razor.storage import atomic_write  # noqa: E402
from razor.train.facts import environment  # noqa: E402

ROUNDED = ("rtn", "gptq")
TRAINED = ("qat", "paper", "same_formats", "even_rows", "ours")
CALIBRATED = 64
"""Rows of text that GPTQ looks at, as in the study of rounding."""

DEFAULTS = {
    "budget": "cpu",
    "quant": "w1p58",
    "methods": "rtn,gptq,peer,ours",
    "seed": "0",
    "rows": "16",  # of held-out text
    "model": "smollm2_135m",
    "runs": "runs",  # has ladder/ and vs_peer/
    "results": str(study_cells.LAYERS),
}


def left(options: dict[str, str], method: str) -> Path | None:
    """What making a cell left behind: a packed folder or the peer's latents; of rounding nothing, None.

    Raises:
        RazorError: it is not there.
    """
    runs, rung = Path(options["runs"]), options["budget"]
    path = study_cells.place(STUDIES / "vs_peer", rung, options["quant"], method, int(options["seed"]))
    if method in ROUNDED:
        return None
    if method in TRAINED:
        return packed_folder(runs / "ladder" / rung / path.stem)
    if not path.is_file():
        raise RazorError(f"'{path}' is not there: the peer was not trained for budget={rung}.")
    latents = runs / "vs_peer" / rung / Cell(**json.loads(path.read_text())["cell"]).name / LATENTS
    if not latents.is_file():
        raise RazorError(f"'{latents}' is gone: remove '{path}' and its cell in grid/ to train it again.")
    return latents


def student(run: Run, method: str, found: Path | None) -> Any:
    """The small model of a method, in evaluation mode."""
    if method in TRAINED:
        return razor.load(found)[0].eval()
    recipe = cli.build(run.config.quant)
    if method == "peer":
        assert found is not None
        return student_of(run, recipe.plan(run.teaching.model.skeleton()), found, torch.bfloat16)
    seed = run.teaching.seed
    maker = Maker(run.teaching.model, recipe, run.corpus.train, seed, CALIBRATED, iters=0, library="on")
    return maker.make(method, Path()).student.eval()


def states(model: Any, batch: Batch) -> Sequence[Tensor]:
    """Hidden states [B, T, width] as Transformers lists them, with the last one after the final norm.

    Not by `razor.models.record`, which wants the head's weight: a packed model has none.
    """
    rows = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    return decoder_of(model)(**rows, use_cache=False, output_hidden_states=True).hidden_states


@torch.no_grad()
def errors(student: Any, teacher: Any, batches: Sequence[Batch]) -> list[float]:
    """By layer, the embedding's output first."""
    count = teacher.config.num_hidden_layers + 1
    sums, tokens = torch.zeros(count, dtype=torch.float64), 0
    for batch in batches:
        own, other = states(student, batch), states(teacher, batch)
        inside = batch.documents >= 0
        for layer in range(count):
            mine, wanted = own[layer][inside].double(), other[layer][inside].double()
            sums[layer] += ((mine - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-6)).sum()
        tokens += int(inside.sum())
    return [float(value) for value in sums / tokens]


def measured(options: dict[str, str], methods: Sequence[str], words: Sequence[str]) -> dict[str, Any]:
    """Errors of all methods, one model in memory at a time, and how they came about.

    Args:
        options: of this script.
        methods: whose models.
        words: overrides of train.py.
    """
    places = {method: left(options, method) for method in methods}  # says what is missing before any work
    named = [f"{key}={options[key]}" for key in ("model", "quant", "seed")]
    run = Run.of(["experiment=ladder", *named, *words])
    teacher = run.teaching.model.load(torch.bfloat16).eval()
    batches = list(run.corpus.held_out.batches(1))[: int(options["rows"])]
    found = {}
    for method, place in places.items():
        print(f"{method}: {place or 'rounded again'}", file=sys.stderr, flush=True)
        found[method] = errors(student(run, method, place), teacher, batches)
    return {
        "model": run.teaching.model.name,
        "rung": options["budget"],
        "quant": options["quant"],
        "w_a_kv": cli.build(run.config.quant).w_a_kv,
        "seed": run.teaching.seed,
        "rows": len(batches),
        "tokens": sum(int((batch.documents >= 0).sum()) for batch in batches),
        "errors": found,
        **environment(torch.device("cpu")),
    }


def main(words: Sequence[str]) -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""

    def job() -> int:
        more = [word for word in words if "." in word.partition("=")[0]]
        options = options_of([word for word in words if word not in more], DEFAULTS)
        ways = [method for method in study_cells.METHODS if method in (*ROUNDED, "peer", *TRAINED)]
        methods = chosen(options, "methods", ways)
        for key, least in (("seed", 0), ("rows", 1)):
            if len(given := numbers(options, key)) > 1 or given[0] < least:
                raise RazorError(f"{key}={options[key]} must be one number of at least {least}.")
        study_text.place()
        found = measured(options, methods, more)
        command = shlex.join(["python", "experiments/ladder/layers.py", *words])
        with atomic_write(Path(options["results"])) as temporary:
            temporary.write_text(json.dumps(found | {"command": command}, indent=1) + "\n", encoding="utf-8")
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
