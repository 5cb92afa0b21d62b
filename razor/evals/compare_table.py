"""A comparison on paper: Markdown for people, CSV and JSON for programs, with the reasons below the table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from razor.evals.compare import Comparison, Line
from razor.storage import atomic_write

NUMBERS = {
    "average": "average",
    "perplexity": "perplexity",
    "kl": "KL",
    "ratio_paper": "ratio",
    "bytes_disk": "MB",
}
DIGITS = {"perplexity": ".4g", "kl": ".3f"}


def markdown(comparison: Comparison, others: Sequence[tuple[Path, str]]) -> str:
    """The table, why rows are marked, what else holds for it, and the runs that have no report."""
    letters = footnotes(comparison)
    scored = [f"tasks.{task}" for task in comparison.tasks] + (["average"] if comparison.tasks else [])
    keys = [*scored, "perplexity", "kl"]
    head = ["run", "model", "quant", "losses", "seed", "steps", "tokens", *comparison.differing]
    head += [NUMBERS.get(key, key.removeprefix("tasks.")) for key in keys] + ["bits", "ratio", "MB"]
    lines = [cells(line, comparison.differing, keys, letters) for line in comparison.lines]
    found = [aligned(head, lines)] if lines else ["No finished run."]
    notes = [f"[{letter}] not comparable, {reason}" for reason, letter in letters.items()]
    if any(len(line.runs) > 1 for line in comparison.lines):
        notes.append("±: standard deviation over the seeds, of repeats that differ in nothing else.")
    if lines:
        notes.append(
            "bits: stored bits per weight, all of the model; ratio: to 16 bits, by the same accounting; MB: packed "
            "tensors; KL in nats and perplexity on held-out text."
        )
    notes += comparison.notes
    found.append("\n".join(f"- {note}" for note in notes))
    if others:
        found.append(
            "\n".join(["Without a report:", "", *(f"- {folder}: {reason}" for folder, reason in others)])
        )
    return "\n\n".join(part for part in found if part)


def footnotes(comparison: Comparison) -> dict[str, str]:
    """A letter for every reason, in the order of the table."""
    reasons = dict.fromkeys(reason for line in comparison.lines for reason in line.marks)
    return {reason: letter(number) for number, reason in enumerate(reasons)}


def letter(number: int) -> str:
    """a, b, ... z, aa, ab, ..."""
    more, last = divmod(number, len(ascii_lowercase))
    return (letter(more - 1) if more else "") + ascii_lowercase[last]


def cells(line: Line, differing: Sequence[str], keys: Sequence[str], letters: dict[str, str]) -> list[str]:
    """One row of the table."""
    run, marks = line.first, ",".join(letters[reason] for reason in line.marks)
    return [
        line.name + (f" [{marks}]" if marks else ""),
        run.model,
        run.quant,
        run.losses,
        line.seeds,
        str(run.steps),
        "?" if run.tokens is None else f"{run.tokens:,}",
        *(plain(line.extra[key]) for key in differing),
        *(with_spread(line, key) for key in keys),
        f"{line.bits:.2f}",
        f"{line.mean('ratio_paper'):.2f}x",
        f"{(line.mean('bytes_disk') or 0) / 1e6:.1f}",
    ]


def with_spread(line: Line, key: str) -> str:
    """A mean and what repeats differ by."""
    mean, spread = line.mean(key), line.spread(key)
    digits = DIGITS.get(key, ".1f")
    if mean is None:
        return "-"
    return f"{mean:{digits}}" + (
        "" if spread is None else f" ±{spread:{'.3g' if digits == '.4g' else digits}}"
    )


def plain(value: Any) -> str:
    """A value of a config, short."""
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def aligned(head: list[str], lines: list[list[str]]) -> str:
    """A Markdown table that a terminal shows straight; text left, numbers right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [head, *lines]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    left = 4

    def row(line: list[str]) -> str:
        return (
            "| "
            + " | ".join(
                cell.ljust(w) if i < left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            + " |"
        )

    rule = "|" + "|".join("-" * (w + 1) + ("-" if i < left else ":") for i, w in enumerate(widths)) + "|"
    return "\n".join([row(lines[0]), rule, *map(row, lines[1:])])


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every row as plain data, numbers in full."""
    keys = [f"tasks.{task}" for task in comparison.tasks] + [
        "average",
        "perplexity",
        "kl",
        "ratio_paper",
        "bytes_disk",
    ]
    found = []
    for line in comparison.lines:
        run = line.first
        record: dict[str, Any] = {
            "run": run.name,
            "folders": [str(repeat.folder) for repeat in line.runs],
            "row": line.row,
            "model": run.model,
            "quant": run.quant,
            "losses": run.losses,
            "seeds": [repeat.seed for repeat in line.runs],
            "steps": run.steps,
            "tokens": run.tokens,
            "bits_per_weight": line.bits,
        }
        for key in keys:
            record[key] = line.mean(key)
            record[f"{key}_sd"] = line.spread(key)
        found.append(record | line.extra | {"not_comparable": line.marks})
    return found


def csv_text(comparison: Comparison) -> str:
    """The records as CSV; lists are joined by '; '."""
    found, out = records(comparison), io.StringIO()
    if found:
        writer = csv.DictWriter(out, list(found[0]), lineterminator="\n")
        writer.writeheader()
        for record in found:
            writer.writerow(
                {k: "; ".join(map(str, v)) if isinstance(v, list) else v for k, v in record.items()}
            )
    return out.getvalue()


def write(comparison: Comparison, others: Sequence[tuple[Path, str]], folder: Path) -> list[Path]:
    """compare.md, compare.csv and pareto.png; returns what was written."""
    from razor.evals.compare_figure import draw_pareto

    written = [folder / "compare.md", folder / "compare.csv"]
    drawn = draw_pareto(comparison, folder / "pareto.png")
    figure = "\n\n![score against bits](pareto.png)" if drawn else ""
    for path, text in zip(
        written, (markdown(comparison, others) + figure + "\n", csv_text(comparison)), strict=True
    ):
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [*written, folder / "pareto.png"] if drawn else written
