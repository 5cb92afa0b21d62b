"""`razor compare` on folders of runs: table, files, JSON, and what is said about wrong words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def pair(finished_run: Any, tmp_path: Path) -> Path:
    """Two finished runs, the second with made-up changes, one that failed and one that was stopped."""
    assert finished_run.code == 0, finished_run.err
    home = tmp_path / "runs"
    for name in ("0_first", "1_second"):
        shutil.copytree(finished_run.folder, home / name, ignore=shutil.ignore_patterns("packed", "wandb"))
    path = home / "1_second" / "report.json"
    report = json.loads(path.read_text())
    report["config"]["trainer"]["learning_rate"] = 0.5
    report["data"]["held_out"] = "0123"
    path.write_text(json.dumps(report))
    for name, files in (("2_third", ["config.yaml", "failure.json"]), ("3_fourth", ["config.yaml"])):
        (home / name).mkdir()
        for file in files:
            (home / name / file).write_text('{"reason": "no space left"}')
    return home


def test_table_of_real_reports(razor: Callable[..., Any], pair: Path) -> None:
    done = razor("compare", f"dirs=[{pair}]")
    assert done.code == 0 and done.err == ""
    lines = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and "trainer.learning_rate" in lines[0]
    report = json.loads((pair / "0_first" / "report.json").read_text())
    first = next(line for line in lines if "0_first" in line)
    for shown in (
        "tiny_llama",
        "mixed_2p79",
        "0.1 task, 2 eakld, 0.1 afd",
        f"{report['rows'][2]['kl']:.3f}",
        f"{16 / report['rows'][2]['ratio_paper']:.2f}",
        f"{report['tokens_seen']:,}",
    ):
        assert shown in first
    assert "held-out text: 0123, not" in done.out or f"not {'0123'}" in done.out
    assert f"- {pair / '2_third'}: failed: no space left" in done.out
    assert f"- {pair / '3_fourth'}: unfinished" in done.out


def test_one_folder_needs_no_list_and_files_are_written(
    razor: Callable[..., Any], pair: Path, tmp_path: Path
) -> None:
    done = razor("compare", f"dirs={pair}", f"out={tmp_path / 'out'}", "rows=all")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "compare.csv",
        "compare.md",
        "pareto.png",
    ]
    assert all(f"wrote {path}" in done.out for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "compare.csv").read_text().count("\n") == 1 + 6


def test_json_and_nothing_else(razor: Callable[..., Any], pair: Path) -> None:
    done = razor("compare", f"dirs=[{pair / '0_first'},{pair / '3_fourth'}]", "json=true")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    report = json.loads((pair / "0_first" / "report.json").read_text())
    assert [row["kl"] for row in found["rows"]] == [report["rows"][2]["kl"]]
    assert found["unfinished"] == [{"folder": str(pair / "3_fourth"), "reason": "unfinished"}]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["dirs=[nowhere]"], ["'nowhere'", "no folder", "sweep"]),
        (["dirs=[]"], ["dirs=[]", "dirs=[runs/a,runs/b]"]),
        (["dirs=null"], ["dirs=None"]),
        (["rows=befor"], ["rows='befor'", "after, all"]),
        (["seeds=both"], ["seeds='both'", "mean, each"]),
        (["out=''"], ["out= is empty"]),
        (["json=yes"], ["json=", "true or false"]),
    ],
)
def test_wrong_words(razor: Callable[..., Any], words: list[str], expected: list[str]) -> None:
    problem = razor("compare", *words).problem
    assert [part for part in expected if part not in problem] == [], problem
