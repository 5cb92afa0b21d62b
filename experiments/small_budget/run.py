"""What helps a small budget: one change at a time, of the paper's method and of the recipe that came of it.

    python experiments/small_budget/run.py                                    # both widths, seed 0
    python experiments/small_budget/run.py quant=w1p58 variants=paper,kld,start seeds=0,1,2 steps=43

Every cell sees the same text in the same order and ends with the same stored bits. A start's calibration text is
part of the training text, and its rows are taken off the steps, so that all saw equally many tokens. Cells that are
there are skipped. README.md has the table (`make table`).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import study_cells  # noqa: E402
import study_making  # noqa: E402
import study_text  # noqa: E402

from razor.cli.guard import guarded  # noqa: E402

WIDTHS = ("w1p58", "mixed_2p79")
LSQ = {
    "w1p58": ["quant=w1p58_lsq"],
    "mixed_2p79": [
        "quant=mixed_2p79",
        "quant/format@quant.weights.high=lsq",
        "quant/format@quant.weights.high.base=int4",
        "quant/format@quant.weights.low=lsq",
    ],
}
MSE = {
    "w1p58": ["quant=w1p58", "quant/format@quant.weights=ternary_mse"],
    "mixed_2p79": [
        "quant=mixed_2p79",
        "quant/format@quant.weights.low=ternary_mse",
        "quant.weights.high.scale=mse",
    ],
}
SOFT = {
    "w1p58": ["quant=w1p58", "quant/format@quant.weights=ternary_soft"],
    "mixed_2p79": ["quant=mixed_2p79", "quant/format@quant.weights.low=ternary_soft"],
}
PLAIN = {quant: [f"quant={quant}"] for quant in WIDTHS}
EVEN = {quant: [f"quant={quant}_plus"] for quant in WIDTHS}
PLUS = EVEN | {"mixed_2p79": ["quant=auto_2p79_plus"]}
START = "start=gptq"
SLOW = {
    "w1p58": ["quant=w1p58_plus", "quant.weights.lr_multiplier=1"],
    "mixed_2p79": [*PLUS["mixed_2p79"], "start.lr_multiplier=1"],
}
PEERS, GENTLE = "the peer's rate", "trainer.learning_rate=3e-4"
RATES = {"w1p58": "trainer.learning_rate=1e-3", "mixed_2p79": "trainer.learning_rate=3e-4"}
"""The peer's best at that width and 18,500 tokens (experiments/vs_peer), for all that starts by plain rounding."""

VARIANTS: dict[str, tuple[dict[str, list[str]], list[str]]] = {
    # the paper's method, and one change to it
    "paper": (PLAIN, ["distill=eakld_afd", PEERS]),
    "paper_1e-3": (PLAIN, ["distill=eakld_afd", "trainer.learning_rate=1e-3"]),
    "paper_3e-4": (PLAIN, ["distill=eakld_afd", GENTLE]),
    "paper_3e-3": (PLAIN, ["distill=eakld_afd", "trainer.learning_rate=3e-3"]),
    "attention": (PLAIN, ["distill=eakld_afd_attn", PEERS]),
    "kld": (PLAIN, ["distill=kld", PEERS]),
    "features": (PLAIN, ["distill=small_budget", PEERS]),
    "lsq": (LSQ, ["distill=kld", PEERS]),
    "mse": (MSE, ["distill=kld", PEERS]),
    "soft": (SOFT, ["distill=kld", PEERS]),
    "bits": (PLAIN, ["distill=kld", PEERS, "callbacks=[default,held_out,bits]"]),
    "frozen_embedding": (
        PLAIN,
        [
            "distill=kld",
            PEERS,
            "callbacks=[default,held_out,freeze]",
            "callbacks.freeze.rules=[{names: '*.embed_tokens'}]",
        ],
    ),
    "formats": (EVEN, ["distill=kld", PEERS]),
    "start": (PLAIN, [START, "distill=kld", GENTLE]),
    "start_mse": (MSE, [START, "distill=kld", GENTLE]),
    # the recipe, and one change to it
    "ours": (PLUS, [START, "distill=small_budget", GENTLE]),
    "ours_even_rows": (EVEN, [START, "distill=small_budget", GENTLE]),
    "ours_kld": (PLUS, [START, "distill=kld", GENTLE]),
    "ours_eakld": (PLUS, [START, "distill=eakld", GENTLE]),
    "ours_paper_losses": (PLUS, [START, "distill=eakld_afd", GENTLE]),
    "ours_6e-4": (PLUS, [START, "distill=small_budget", "trainer.learning_rate=6e-4"]),
    "ours_1e-3": (PLUS, [START, "distill=small_budget", "trainer.learning_rate=1e-3"]),
    "ours_1e-4": (PLUS, [START, "distill=small_budget", "trainer.learning_rate=1e-4"]),
    "ours_slow_scales": (SLOW, [START, "distill=small_budget", GENTLE]),
    "ours_16_rows": (PLUS, ["start=gptq", "start.rows=16", "distill=small_budget", GENTLE]),
    "ours_linear": (PLUS, [START, "distill=small_budget", GENTLE, "trainer.schedule=linear"]),
    "ours_one_row": (
        PLUS,
        [START, "distill=small_budget", GENTLE, "data.rows_per_batch=1"],
    ),
}
"""Formats by width, and the other words for train.py."""

ROWS = 32
"""That a start looks at, unless a variant says otherwise."""

DEFAULTS = {
    "quant": ",".join(WIDTHS),
    "variants": ",".join(VARIANTS),
    "seeds": "0",
    "steps": "43",  # 20,000 tokens
    "dry_run": "false",
}


def words_of(variant: str, quant: str, seed: int, steps: int) -> list[str]:
    """For train.py; what a start looks at is taken off the steps, of two rows each or of one."""
    formats, more = VARIANTS[variant]
    looked = 0
    if START in more:
        given = [word for word in more if word.startswith("start.rows=")]
        looked = int(given[0].partition("=")[2]) if given else ROWS
        more = [*more, *([] if given else [f"start.rows={ROWS}"])]
        if any(word.startswith("quant=auto") for word in formats[quant]):
            more.append(f"score.rows={looked}")
    more = [RATES[quant] if word == PEERS else word for word in more]
    rows = 2 * steps - looked
    each = 1 if "data.rows_per_batch=1" in more else 2
    budget = [f"trainer.max_steps={rows // each}", "callbacks.held_out.every=1000", f"seed={seed}"]
    return ["experiment=ladder", *formats[quant], *more, *budget]


def main(words: Sequence[str]) -> int:
    """Return the exit code: 0, 2 for bad input, 130 after Ctrl-C."""

    def job() -> int:
        options = study_making.options_of(words, DEFAULTS)
        variants = study_making.chosen(options, "variants", tuple(VARIANTS))
        quants, seeds = study_making.chosen(options, "quant", WIDTHS), study_making.numbers(options, "seeds")
        shown = study_making.chosen(options, "dry_run", ("true", "false")) == ["true"]
        (steps,) = study_making.numbers(options, "steps")
        if not shown:
            study_text.place()
        for seed, quant, variant in itertools.product(seeds, quants, variants):
            rung = f"{steps}_steps"
            path = study_cells.place(HERE, rung, quant, variant, seed)
            run = Path("runs/small_budget") / rung / path.stem
            command = study_making.train(words_of(variant, quant, seed, steps), run)
            if shown:
                print("python " + " ".join(command))
                continue
            told = {"study": "small_budget", "rung": rung, "quant": quant, "method": variant}
            study_making.make(path, command, told, run)
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
