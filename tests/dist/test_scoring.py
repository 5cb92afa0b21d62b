"""Benchmarks scored by two processes, whose rows cannot be dealt evenly, are those of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from razor.evals.rows import ROWS_VERSION
from razor.storage import file_digest
from tests.dist.conftest import TWO, Place
from tests.dist.held_against import assert_same_rows, rows_of

pytestmark = [pytest.mark.slow, pytest.mark.dist]
ROWS = 7
WORDS = (
    "evals=quick",
    "evals.tasks=[piqa,sciq]",
    f"evals.limit={ROWS}",
    "evals.batch_size=3",
    "trainer.max_steps=2",
)


def stand_ins(folder: Path) -> None:
    """Rows of our own under the names of two tasks, so that no package has to be fetched; the manifest vouches."""
    words = ["red", "green", "blue", "small", "large", "old", "new", "warm", "cold", "round"]
    tasks: dict[str, list[dict[str, Any]]] = {"piqa": [], "sciq": []}
    for number in range(ROWS):
        three = [words[(number + step) % len(words)] for step in (1, 4, 6)]
        right, question = words[(3 * number) % len(words)], f"What is {number} times {number}?"
        tasks["piqa"].append({"goal": question, "sol1": three[0], "sol2": right, "label": number % 2})
        wrong = {f"distractor{place + 1}": word for place, word in enumerate(three)}
        tasks["sciq"].append({"question": question, "support": "", "correct_answer": right} | wrong)
    folder.mkdir(parents=True)
    known = {}
    for task, rows in tasks.items():
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{task}.parquet")
        known[task] = file_digest(folder / f"{task}.parquet")
    (folder / "manifest.json").write_text(json.dumps({"sha256": known}))


def test_an_odd_number_of_rows(place: Place, tmp_path: Path) -> None:
    """Cut over processes, where each has to have whole models to score more or less rows than the other."""
    own = Path(shutil.copytree(place.main_job.cache, tmp_path / "cache"))
    place.main_job.cache = own
    stand_ins(own / "rows" / ROWS_VERSION)
    two = place.whole(*WORDS, "trainer=fsdp2", *TWO)
    shutil.rmtree(own / "scores")  # of the teacher, which the next run would take
    alone = place.alone(*WORDS)
    scores = [[row[f"tasks.{task}.value"] for task in ("piqa", "sciq")] for row in rows_of(two)]
    assert all(row["tasks.piqa.rows"] == row["tasks.sciq.rows"] == ROWS for row in rows_of(two))
    assert scores[0] != scores[1]  # a random model's, but not by chance alike
    assert_same_rows(two, alone, 1e-3)
