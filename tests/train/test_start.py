"""`train.py start=gptq`: training begins at the start, which a checkpoint holds, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from razor.recipe import Recipe
from tests.train.test_resume import Killed, assert_same_end

WORDS = ("start=gptq", "start.rows=6", "trainer.max_steps=3", "trainer.checkpoint_every=2", "quant=w1p58")


@pytest.fixture(scope="module")
def started(make_main_job: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    done = make_main_job(tmp_path_factory.mktemp("started"))(*WORDS)
    assert done.code == 0, done.err
    return done


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def test_the_report_tells_of_it(started: Any, main_job: Any) -> None:
    report, plain = report_of(started.folder), report_of(main_job(*WORDS, "start=none", "-start.rows").folder)
    facts = report["start"]
    assert facts["name"] == "gptq" and facts["tokens"] > 100 and facts["layers"] == 28
    assert facts["error"] < facts["error_plain"]
    assert "start" not in plain and "as gptq started it" in report["notes"][0]
    assert report["rows"][1]["kl"] < plain["rows"][1]["kl"]
    assert report["rows"][1]["bytes_disk"] == plain["rows"][1]["bytes_disk"]
    assert "\nstart    gptq on 6 rows" in started.out
    quant = Recipe.load(started.folder / "recipe.yaml").to_dict()["quant"]
    assert quant["weights"]["kind"] == "LearnedScale" and quant["embedding"]["kind"] == "Integer"


@pytest.mark.parametrize(
    ("place", "again"),
    [
        ("razor.train.run.fit", True),
        pytest.param("razor.train.evaluation.Evaluation.on_fit_end", False, marks=pytest.mark.slow),
    ],
    ids=["before the first checkpoint", "after the last"],
)
def test_a_resumed_run_starts_anew_only_without_a_checkpoint(
    started: Any, main_job: Any, place: str, again: bool
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise Killed

    folder = main_job.folder()
    with main_job.monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(Killed):
            main_job(*WORDS, folder=folder)
    done = main_job.resume(folder)
    assert done.code == 0, done.err
    assert ("start: 28 linear layers" in done.out) == again
    assert_same_end(folder, started.folder)
    assert report_of(folder)["start"]["error"] == report_of(started.folder)["start"]["error"]
