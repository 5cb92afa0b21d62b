"""The report: what its JSON holds, and the table that people read."""

from __future__ import annotations

import json
from pathlib import Path

from razor.evals.held_out import HeldOut
from razor.evals.report import SCHEMA, Report, Row
from razor.evals.scores import Score, Scores


def rows(tasks: bool = True) -> list[Row]:
    made = []
    for name, value, ratio in (("teacher", 61.25, 1.0), ("before", 25.0, 5.05), ("after", 48.0, 5.05)):
        scores = (
            [Score("piqa", "acc_norm", value, 4.9, 100), Score("sciq", "acc", value + 10, None, 1)]
            if tasks
            else []
        )
        held_out = HeldOut(12.5 if name == "teacher" else 1e7, 0.0 if name == "teacher" else 2.25, 80.0, 900)
        made.append(Row(name, "W2.79-A8-KV8", Scores(scores), held_out, ratio, ratio - 0.05, 1_234_567))
    return made


def test_json_holds_every_number(tmp_path: Path) -> None:
    report = Report("a model", rows(), {"seed": 3, "config": {"x": 1}}, ["a note"], ["losses"])
    report.save(tmp_path)
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["schema"] == SCHEMA and found["title"] == "a model" and found["notes"] == ["a note"]
    assert found["seed"] == 3 and found["config"] == {"x": 1}
    assert [row["name"] for row in found["rows"]] == ["teacher", "before", "after"]
    assert found["rows"][1] == {
        "name": "before",
        "w_a_kv": "W2.79-A8-KV8",
        "tasks": {
            "piqa": {"task": "piqa", "metric": "acc_norm", "value": 25.0, "stderr": 4.9, "rows": 100},
            "sciq": {"task": "sciq", "metric": "acc", "value": 35.0, "stderr": None, "rows": 1},
        },
        "average": 30.0,
        "perplexity": 1e7,
        "kl": 2.25,
        "agreement": 80.0,
        "held_out_tokens": 900,
        "ratio_paper": 5.05,
        "ratio_disk": 5.0,
        "bytes_disk": 1_234_567,
    }


def test_table_is_aligned_and_has_the_columns_of_the_paper() -> None:
    lines = Report("a model", rows(), {}).table().splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = ["", "W-A-KV", "piqa", "sciq", "average", "perplexity", "KL", "ratio", "on disk", "MB"]
    assert cells[0] == head
    after = ["after", "W2.79-A8-KV8", "48.0 ±4.9", "58.0", "53.0", "1e+07", "2.250", "5.05x", "5.00x", "1.2"]
    assert cells[4] == after


def test_without_tasks_there_is_no_average() -> None:
    report = Report("a model", rows(tasks=False), {})
    assert "average" not in report.table() and "piqa" not in report.table()
    assert [row["average"] for row in report.to_dict()["rows"]] == [None] * 3


def test_markdown_links_just_the_figures_there_are() -> None:
    text = Report("a model", rows(), {}, ["one", "two"], ["score_vs_ratio"]).markdown()
    assert text.startswith("# a model\n\n|") and "- one\n- two\n" in text
    assert "![score_vs_ratio](score_vs_ratio.png)" in text and "losses" not in text
    assert text.endswith("\n") and not text.endswith("\n\n")


def test_saving_again_replaces(tmp_path: Path) -> None:
    for title in ("first", "second"):
        Report(title, rows(), {}).save(tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "second"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
