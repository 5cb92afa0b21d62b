"""The best cell of the peer's grid: chosen by held-out KL, scored on tasks, written as this method's result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peer_batches import Run
from peer_cell import student_of
from peer_job import LATENTS, Cell

from razor.cli import config as cli
from razor.evals import Benchmark
from razor.storage import atomic_write

GRID = "grid"


def grid(results: Path, like: Cell) -> list[tuple[Cell, dict[str, Any]]]:
    """All cells of a width, a seed and a number of steps, the best first; also those of earlier commands."""
    found = [json.loads(path.read_text()) for path in sorted((results / GRID).glob("*.json"))]
    cells = [(Cell(**each["cell"]), each) for each in found]
    same = (like.quant, like.seed, like.steps)
    own = [(cell, each) for cell, each in cells if (cell.quant, cell.seed, cell.steps) == same]
    return sorted(own, key=lambda pair: kl_of(pair[1]))


def keep_best(made: list[tuple[Cell, dict[str, Any]]], folder: Path) -> None:
    """Remove the latents, half a gigabyte each, of all cells but the best so far."""
    for cell, _ in made[1:]:
        (folder / cell.name / LATENTS).unlink(missing_ok=True)


def write_tuned(
    made: list[tuple[Cell, dict[str, Any]]], run: Run, folder: Path, results: Path, benchmark: Benchmark
) -> None:
    """The best cell as this method's result, scored on tasks if that was asked for.

    Scores that are there stay if the best cell is still the same, and nothing else is asked for.
    """
    cell, best = made[0]
    path = results / f"{cell.quant}_peer_s{cell.seed}.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    asked = {"tasks": list(benchmark.tasks), "limit": benchmark.limit if benchmark.tasks else None}
    scores, same = None, before.get("cell") == best["cell"]
    if same and (not benchmark.tasks or before["evals"] == asked):
        scores, asked = before["scores"], before["evals"]
    elif benchmark.tasks and best["held_out"] is not None:
        plan = cli.build(run.config.quant).plan(run.teaching.model.skeleton())
        student = student_of(run, plan, folder / cell.name / LATENTS, torch.bfloat16)
        scores = benchmark.score(student, run.teaching.model.tokenizer(), f"scoring {cell.name}").to_dict()
    keys = ("learning_rate", "schedule", "losses", "layout")
    tuned = [
        {key: each["cell"][key] for key in keys} | {"kl": each["held_out"] and each["held_out"]["kl"]}
        for _, each in made
    ]
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(best | {"scores": scores, "evals": asked, "tuned": tuned}, indent=1))
    print(f"{path}: the best of {len(made)}, held-out KL {show(kl_of(best))}", flush=True)


def kl_of(found: dict[str, Any]) -> float:
    """Held-out KL; infinite for a run that came to nothing."""
    return float("inf") if found["held_out"] is None else float(found["held_out"]["kl"])


def show(kl: float) -> str:
    """For people."""
    return "none, it diverged" if kl == float("inf") else f"{kl:.4f}"
