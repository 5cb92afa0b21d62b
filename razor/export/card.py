"""The model card of an export: what it is, what it scored, what it takes, what it cannot do.

Every number is read from the run's report; where there is no report the card says so instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from razor.models.task import task_of

if TYPE_CHECKING:
    from razor.export.compressed import Compressed

PIPELINES = {"text": "text-generation", "images": "image-classification", "media": "any-to-any"}
"""What the hub calls what a model does."""

SHOWN = 20
"""Names of classes on a card, at most."""

LIMIT = "A compressed model repeats the errors of its base and adds its own: look at its scores first."


def model_card(
    compressed: Compressed,
    format: str,
    tags: Sequence[str],
    costs: Sequence[str],
    proof: Sequence[str],
    usage: str,
) -> str:
    """README.md of an exported folder, as the Hugging Face hub reads it.

    Args:
        compressed: what was exported.
        format: name of the exporter.
        tags: for the hub.
        costs: sentences on what the format loses or adds.
        proof: sentences on what was compared.
        usage: Markdown, how to load it.
    """
    about = compressed.about
    size = compressed.size.total
    parts = [
        _front_matter(compressed, tags),
        f"# {compressed.name} ({format})",
        f"{about.get('base') or about.get('model', 'A model')} compressed to "
        f"{about.get('w_a_kv', 'low bits')} with Razor, by {compressed.how}.",
        "## Load it\n\n" + usage.strip(),
        *_images(about),
        "## What it takes\n\n"
        + _list(
            [
                f"{size.parameters / 1e6:.1f} M parameters; by Razor's accounting {size.bits_per_weight:.3f} bits "
                f"per weight, all in, ratio {size.ratio_paper:.2f} to 16 bits (a trit counted as 1.58 bits)",
                *costs,
            ]
        ),
        "## Checked when it was written\n\n" + _list(proof),
        "## Scores\n\n" + _scores(compressed.report),
        "## Limits\n\n" + _list(_limits(compressed)),
        "## Licence\n\n" + _licence(about.get("licence"), about.get("base")),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(compressed: Compressed, tags: Sequence[str]) -> str:
    about = compressed.about
    lines = ["---", f"pipeline_tag: {PIPELINES[task_of(compressed.config)]}"]
    if about.get("licence"):
        lines.append(f"license: {about['licence']}")
    if about.get("base"):
        lines += [f"base_model: {about['base']}", "base_model_relation: quantized"]
    lines += ["tags:", *(f"- {tag}" for tag in ("razor", *tags)), "---"]
    return "\n".join(lines)


def _images(about: Mapping[str, str]) -> list[str]:
    """How pixels become inputs, which nothing in the weights tells, and what the classes are; [] if unknown."""
    if "mean" not in about:
        return []
    names = about.get("classes", "").split(", ")
    more = ", ..." if len(names) > SHOWN else ""
    lines = [
        f"images of {about.get('size', 'any size')} (channels x height x width), numbers from 0 to 1 less "
        f"{about['mean']}, divided by {about['deviation']}",
        *(
            [f"classes, in this order: {', '.join(names[:SHOWN])}{more} (config.json: id2label)"]
            if names[0]
            else []
        ),
    ]
    return ["## What goes in and comes out\n\n" + _list(lines)]


def _scores(report: Any) -> str:
    rows = report.get("rows") if isinstance(report, dict) else None
    if not rows:
        return "It was not scored: no report lies beside the packed model."
    tasks = list(rows[0]["tasks"])
    header = ["", "W-A-KV", *tasks, *(["average"] if tasks else []), "perplexity", "KL (nats per token)"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in rows:
        scores = [f"{row['tasks'][task]['value']:.1f}" for task in tasks]
        average = [f"{row['average']:.1f}"] if tasks else []
        cells = [
            row["name"],
            row["w_a_kv"],
            *scores,
            *average,
            f"{row['perplexity']:.4g}",
            f"{row['kl']:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    facts = [
        f"{report[key]:,} {text}" if isinstance(report[key], int) else f"{report[key]} {text}"
        for key, text in (
            ("steps", "steps"),
            ("tokens_seen", "tokens seen"),
            ("images_seen", "images seen"),
        )
        if key in report
    ]
    seed = f", seed {report['seed']}" if "seed" in report else ""
    notes = _list(report.get("notes") or [])
    return "\n".join(lines) + f"\n\nTraining: {', '.join(facts)}{seed}.\n\n{notes}".rstrip()


def _limits(compressed: Compressed) -> list[str]:
    note = compressed.about.get("note")
    return [
        LIMIT,
        *([f"Recovery is measured against another teacher than the original: {note}."] if note else []),
    ]


def _licence(licence: str | None, base: str | None) -> str:
    whose = f"of the base model, {base}," if base else "of the base model"
    if licence:
        return f"The licence {whose} applies: {licence}."
    return f"The licence {whose} applies; Razor was not told which it is, look there before you share this."


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or "- nothing"
