"""How far each layer of small models is from the teacher's: relative error of hidden states on held-out text.

    python experiments/ladder/layers.py "plain rounding=FOLDER" "Razor, 1.58 bits=RUN" ... > results/layers.json

Each folder is a packed model (of `razor quantize`, of a run of train.py); text is the held-out text of seed 0.
For layer i: mean over tokens of |h - t|^2 / |t|^2 of its output, the last one after the final norm.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

import razor
from razor.cli.config import composed
from razor.cli.guard import guarded
from razor.cli.teacher import teaching
from razor.distill import Batch, Needs
from razor.errors import RazorError
from razor.export.compressed import packed_folder
from razor.models import record

ROWS = 16


@torch.no_grad()
def errors(student: Any, teacher: Any, batches: list[Batch]) -> list[float]:
    """By layer, the embedding's output first."""
    count = teacher.config.num_hidden_layers + 1
    sums, tokens = torch.zeros(count, dtype=torch.float64), 0
    needs = Needs(states=frozenset(range(count)))
    for batch in batches:
        own, other = record(student, batch, needs).states, record(teacher, batch, needs).states
        inside = batch.documents >= 0
        for layer in range(count):
            mine, wanted = own[layer][inside].double(), other[layer][inside].double()
            sums[layer] += ((mine - wanted).square().sum(-1) / wanted.square().sum(-1).clamp_min(1e-6)).sum()
        tokens += int(inside.sum())
    return [float(value) for value in sums / tokens]


def main(words: list[str]) -> int:
    """Return the exit code."""

    def job() -> int:
        pairs = [word.partition("=") for word in words]
        if not pairs or not all(equals for _, equals, _ in pairs):
            raise RazorError("Give models as NAME=FOLDER, with packed folders or runs.")
        folders = {name: packed_folder(Path(folder)) for name, _, folder in pairs}
        found = teaching(composed("train", ["experiment=ladder"]))
        found.check()
        corpus, teacher = found.corpus(), found.load_teacher().eval()
        batches = list(corpus.held_out.batches(2))[: ROWS // 2]
        told = {
            name: errors(razor.load(folder)[0].eval(), teacher, batches) for name, folder in folders.items()
        }
        print(json.dumps({"model": found.model.name, "rows": ROWS, "errors": told}, indent=1))
        return 0

    return guarded(job, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
