"""Another library's allocation beside ours: widths by auto-round's AutoScheme, in the formats that ours has.

The library decides who gets how many bits, by its own integers and on the same rows of text, which it reads in
pieces of one length and without borders between documents; Razor puts its own
format of that width in place, so that two plans differ in nothing but their choice. It knows neither ternary nor
rows.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from study_library import environment_python

from razor.allocate import Search
from razor.errors import RazorError
from razor.models import ModelSource
from razor.quant import Format

NAME = "autoscheme"
LENGTH, SPARE = 128, 8
"""Tokens of a sample as the library reads it, and further ones that it cuts off: it drops samples that are shorter
once its tokenizer has read them again."""


def widths_of(options: Sequence[str], formats: dict[str, Format]) -> dict[int, Format]:
    """The formats that may be chosen, by their code bits.

    Raises:
        RazorError: one whose width is no whole number, two of one width, or one whose scales take other bits.
    """
    found: dict[int, Format] = {}
    for name in options:
        bits = formats[name].code_bits((64, 64)) / 64**2
        if bits != int(bits) or int(bits) in found:
            raise RazorError(
                f"options={','.join(options)}: score={NAME} tells options apart by whole bits, and {name} has "
                f"{bits:.2f}. options=seq_2_mse,int3_mse,int4_mse, say."
            )
        found[int(bits)] = formats[name]
    if len({format.side_bits((64, 64)) for format in found.values()}) > 1:
        raise RazorError(
            f"options={','.join(options)}: score={NAME} knows one size of scales, and theirs differ."
        )
    return found


def found(
    search: Search, source: ModelSource, rows: int, folder: Path, library: str = "on"
) -> tuple[dict[str, Format], dict[str, Any]]:
    """Formats by target; what is told of them, tokens looked at and the library's seconds among that.

    Args:
        search: whose targets, budget and text.
        source: of the model.
        rows: of training text.
        folder: for what the library reads and writes.
        library: "on", or the folder of its environment.

    Raises:
        RazorError: the library failed, or left a target without a width.
    """
    targets = search.space.targets
    formats = widths_of(search.automatic.options, dict(next(iter(targets.values())).formats))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, batches = source.tokenizer(), search.text.calibration(rows)
    text = torch.cat([batch.input_ids[batch.documents >= 0] for batch in batches])
    pieces = [piece for piece in text.split(LENGTH + SPARE) if len(piece) == LENGTH + SPARE]
    (folder / "text.json").write_text(json.dumps([tokenizer.decode(piece) for piece in pieces]))
    search.load().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    asked = {
        "bits": list(formats),
        "group": next(iter(formats.values())).group,
        "samples": len(pieces),
        "length": LENGTH,
    }
    (folder / "options.json").write_text(json.dumps(asked | {"mean_bits": mean_bits(search)}))
    python = environment_python(library)
    if subprocess.run([python, str(Path(__file__).with_name("library.py")), str(folder)]).returncode:
        raise RazorError(f"score={NAME} failed in the environment of '{python}': its own words are above.")
    told = json.loads((folder / "widths.json").read_text())
    widths, told["library_versions"] = told.pop("widths"), told.pop("versions")
    if missing := sorted(name for name in targets if name not in widths):
        raise RazorError(f"score={NAME} gave no width to {len(missing)} matrices, first '{missing[0]}'.")
    chosen = {name: formats[widths[name]] for name in targets}
    size, budget = search.space.total(chosen).total, search.automatic.budget
    if size.bits_per_weight > budget.amount:
        raise RazorError(
            f"score={NAME}: its plan has {size.bits_per_weight:.4f} bits per weight, not {budget}."
        )
    return chosen, told | {"calibration_tokens": LENGTH * len(pieces)}


def mean_bits(search: Search) -> float:
    """Mean code bits of the targets that the budget, in bits per weight of the model, leaves them."""
    space, budget = search.space, search.automatic.budget
    assert budget.unit == "bpw"
    some = {name: next(iter(target.formats.values())) for name, target in space.targets.items()}
    whole = space.total(some).total
    code = sum(space.size(name, format).code_bits for name, format in some.items())
    left = budget.amount * whole.parameters - (whole.bits - code)
    return math.floor(1e4 * left / space.weights) / 1e4
