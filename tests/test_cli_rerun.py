"""`razor rerun`: a run repeated from its folder, number for number; and what a run keeps about how it was made."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.cli.rerun import verdict
from razor.evals.compare_numbers import Difference, Match
from razor.train import facts


@pytest.fixture(scope="module")
def made(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A short finished run, made in this process; look, don't change."""
    done = make_main_job(tmp_path_factory.mktemp("made"))("trainer.max_steps=3")
    assert done.code == 0, done.err
    return done


def copied(made: Any, home: Path) -> Path:
    shutil.copytree(made.folder, home / "run")
    return home / "run"


def environment_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "environment.json").read_text())


def test_a_run_keeps_how_it_was_made(made: Any) -> None:
    kept = environment_of(made.folder)
    installed = {d.metadata["Name"].lower().replace("_", "-") for d in importlib.metadata.distributions()}
    assert set(kept["packages"]) == installed
    assert kept["packages"]["torch"] == importlib.metadata.version("torch")
    assert kept["hardware"]["device"] == "cpu" and kept["started"].startswith("20")
    report = json.loads((made.folder / "report.json").read_text())
    assert kept["data"] == report["data"] and set(kept["data"]) == {"train", "held_out"}
    assert kept["model_fingerprint"] == report["model_fingerprint"]
    assert "resumed" not in kept
    if kept["git"] is not None:
        assert (made.folder / "changes.diff").is_file() == kept["git"]["changed"]


def test_other_text_has_another_hash(made: Any, main_job: Any) -> None:
    other = main_job("trainer.max_steps=1", "data.held_out=3")
    assert other.code == 0, other.err
    old, new = environment_of(made.folder)["data"], environment_of(other.folder)["data"]
    assert old["train"] != new["train"] and old["held_out"] != new["held_out"]


def test_it_is_there_before_anything_heavy(main_job: Any) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    main_job.monkeypatch.setattr("razor.train.run.fit", stop)
    folder = main_job.folder()
    with pytest.raises(Stop):
        main_job(folder=folder)
    assert environment_of(folder)["packages"]
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["error"] == "Stop" and "test_cli_rerun" in Path(failure["traceback"]).read_text()


def test_a_resumed_run_says_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    facts.record_environment(tmp_path, device)
    facts.record_environment(tmp_path, device)
    assert "resumed" not in environment_of(tmp_path)
    monkeypatch.setattr(facts, "packages", lambda: environment_of(tmp_path)["packages"] | {"torch": "9.9"})
    facts.record_environment(tmp_path, device)
    (resumed,) = environment_of(tmp_path)["resumed"]
    assert resumed["changed"] == {"packages.torch": [importlib.metadata.version("torch"), "9.9"]}


def test_text_that_changed_before_a_resume_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def fingerprint(self) -> str:
            return "abc"

    given: Any = Model(), None
    for train in ("1", "1", "2", "2"):
        monkeypatch.setattr(facts, "text_hashes", lambda _, train=train: {"train": train, "held_out": "h"})
        assert facts.record_hashes(tmp_path, *given) == {"train": train, "held_out": "h"}
    kept = environment_of(tmp_path)
    assert kept["model_fingerprint"] == "abc" and kept["data"] == {"train": "2", "held_out": "h"}
    assert [resumed["changed"] for resumed in kept["resumed"]] == [{"text.train": ["1", "2"]}]


def test_equal_to_the_last_digit(made: Any, razor: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(made, tmp_path)
    done = razor("rerun", f"run={run}")
    assert done.code == 0, done.out + done.err
    assert "As it was" in done.out and "Equal to the last digit" in done.out
    again = tmp_path / "run_rerun"
    rows, expected = (json.loads((f / "report.json").read_text())["rows"] for f in (again, run))
    assert rows == expected
    assert (again / "packed" / "model.safetensors").read_bytes() == (
        run / "packed" / "model.safetensors"
    ).read_bytes()


def changed_run(run: Path) -> None:
    """A report, a log, weights, versions and text that were not those of this run."""
    report = json.loads((run / "report.json").read_text())
    report["rows"][2]["kl"] *= 1.5
    report["data"]["train"] = "0123"
    (run / "report.json").write_text(json.dumps(report))
    environment = environment_of(run)
    environment["packages"]["torch"] = "0.1"
    (run / "environment.json").write_text(json.dumps(environment))
    path = run / "logs" / "metrics.csv"
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    rows[1]["loss/total"] = "1.25"
    with path.open("w") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (run / "packed" / "model.safetensors").write_bytes(b"other")


@pytest.mark.slow
def test_differences_end_in_a_table_and_exit_code_1(
    made: Any, razor: Callable[..., Any], tmp_path: Path
) -> None:
    run = copied(made, tmp_path)
    changed_run(run)
    done = razor("rerun", f"run={run}", f"out={tmp_path / 'again'}")
    assert done.code == 1 and done.err.count("razor: ") == 0
    assert "packages.torch: 0.1 then" in done.out and "text.train: 0123 then" in done.out
    for name in ("after.kl", "loss/total, step 1", "packed/model.safetensors"):
        assert f"| {name} |" in done.out
    assert "Not equal: 3 of" in done.out


@pytest.mark.slow
def test_json_and_nothing_else(made: Any, razor: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(made, tmp_path)
    changed_run(run)
    done = razor("rerun", f"run={run}", "json=true")
    assert done.code == 1 and len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    assert found["equal"] is False and "packages.torch" in found["changed"]
    assert {d["name"] for d in found["differences"]} == {
        "after.kl",
        "loss/total, step 1",
        "packed/model.safetensors",
    }
    again = razor("rerun", f"run={run}", "json=true")  # finished: only compared again
    assert json.loads(again.out) == found


@pytest.mark.slow
def test_minutes_are_repeated_as_the_steps_they_became(main_job: Any, razor: Callable[..., Any]) -> None:
    main_job.monkeypatch.setattr("razor.train.budget.seconds_per_batch", lambda *_: 1.0)
    first = main_job("trainer.max_minutes=0.04")
    assert first.code == 0, first.err
    main_job.monkeypatch.setattr("razor.train.budget.seconds_per_batch", lambda *_: 0.001)
    done = razor("rerun", f"run={first.folder}")
    assert done.code == 0, done.out + done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["run has no default"]),
        (["run=nowhere"], ["run='nowhere'", "config.yaml"]),
        (["run={run}", "out="], ["out= is empty"]),
        (["run={run}", "out={run}"], ["the run itself"]),
        (["run={run}", "out={full}"], ["not empty", "out=FOLDER"]),
    ],
)
def test_wrong_words(
    made: Any, razor: Callable[..., Any], tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    given = [word.format(run=made.folder, full=tmp_path) for word in words]
    problem = razor("rerun", *given).problem
    assert [part for part in expected if part not in problem] == [], problem


def test_an_unfinished_run_cannot_be_repeated(made: Any, razor: Callable[..., Any], tmp_path: Path) -> None:
    run = copied(made, tmp_path)
    (run / "report.json").unlink()
    assert "no run finished there" in razor("rerun", f"run={run}").problem


def test_many_differences_are_cut_and_the_worst_is_named() -> None:
    many = [Difference(f"loss, step {n}", 1.0, 1.0 + n / 100) for n in range(1, 31)]
    text = verdict(Match({"logged values": 40}, [Difference("file", "a", "b"), *many]), Path("out"))
    assert "31 of 40 logged values differ, most in loss, step 30" in text
    assert text.count("\n| ") == 1 + 20 and "and 11 more" in text
