"""`razor evaluate`: models of every form in one table, resumable, and what is said about wrong words."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from razor.cli.evaluate import leading
from razor.cli.targets import widths
from razor.evals.rows import ROWS_VERSION
from tests.dist.test_scoring import ROWS, stand_ins

TASKS = ["evals.tasks=[piqa,sciq]", f"evals.limit={ROWS}"]


@pytest.fixture
def scored(main_job: Any, razor: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`razor evaluate WORDS` in a cache of its own, on rows of our own."""
    main_job.cache = tmp_path / "cache"
    stand_ins(main_job.cache / "rows" / ROWS_VERSION)
    return lambda *words: razor("evaluate", *words, *TASKS)


@pytest.fixture
def models(razor: Callable[..., Any], tmp_path: Path) -> dict[str, str]:
    """One random model: by its option, as a folder of Transformers, packed, and as a GGUF."""
    import torch

    from razor import cli
    from razor.export.compressed import Compressed
    from razor.export.gguf import GGUF

    source = cli.model_source(cli.composed("size", ["model=tiny_llama"]))
    folder, packed = tmp_path / "dense", tmp_path / "packed"
    source.load(torch.bfloat16).save_pretrained(folder)
    source.tokenizer().save_pretrained(folder)
    made = razor("quantize", "model=tiny_llama", "quant=w4", f"out={packed}")
    assert made.code == 0, made.err
    found = {"option": "tiny_llama", "folder": str(folder), "packed": str(packed)}
    if importlib.util.find_spec("xllamacpp") is not None:
        (tmp_path / "gguf").mkdir()
        GGUF(runtime=False).write(Compressed.open(packed), tmp_path / "gguf")
        (path,) = (tmp_path / "gguf").glob("*.gguf")
        found["gguf"] = str(path)
    return found


def test_every_form_in_one_table_and_known_scores_are_not_computed_again(
    scored: Callable[..., Any], models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*models.values(), "kv=f16", "json=true", f"out={tmp_path / 'out'}"]
    done = scored(*words)
    assert done.code == 0 and len(done.out.splitlines()) == 1, done.err
    found = json.loads(done.out)
    rows = dict(zip(models, found["rows"], strict=True))
    assert [row["name"] for row in found["rows"]] == list(models.values())
    for row in rows.values():
        assert list(row["tasks"]) == ["piqa", "sciq"]
        assert all(0 <= task["value"] <= 100 and task["rows"] == ROWS for task in row["tasks"].values())
        assert row["average"] == pytest.approx(sum(task["value"] for task in row["tasks"].values()) / 2)
    assert rows["option"]["tasks"] == rows["folder"]["tasks"]  # the very same numbers
    assert (rows["folder"]["w_a_kv"], rows["folder"]["ratio_disk"]) == ("W16-A16-KV16", 1.0)
    assert rows["packed"]["w_a_kv"] == "W4-A8-KV8" and rows["packed"]["ratio_paper"] > 3
    weights = sum(path.stat().st_size for path in Path(models["packed"]).glob("*.safetensors"))
    assert 0.8 * weights < rows["packed"]["bytes_disk"] <= weights  # its header aside
    if "gguf" in rows:
        assert rows["gguf"]["ratio_paper"] is None and rows["gguf"]["ratio_disk"] > 2
        assert rows["gguf"]["w_a_kv"].endswith("-A8-KV16")
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"] == found["rows"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "tiny_llama" in text and f"first {ROWS} rows of each task" in text

    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded although its scores are known")

    monkeypatch.setattr("razor.evals.harness.Benchmark.ask", loaded)
    again = scored(*words[:-1])
    assert again.code == 0 and json.loads(again.out)["rows"] == found["rows"]
    with pytest.raises(AssertionError, match="scores are known"):
        scored("tiny_llama", "compute_dtype=float32")  # which is another model


def test_a_run_and_a_list(scored: Callable[..., Any], finished_run: Any) -> None:
    done = scored(f"target=[tiny_llama,{finished_run.folder}]")
    assert done.code == 0, done.err
    lines = [line for line in done.out.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and "W2.79-A8-KV8" in lines[3] and " 1.00x " in lines[2]
    assert "±" in lines[2] and "average" in lines[0]


def test_words_in_front_are_targets() -> None:
    assert leading(["a=b", "c"]) == (None, ["a=b", "c"])
    assert leading(["runs/x, y", "b", "evals=table", "c"]) == (["runs/x, y", "b"], ["evals=table", "c"])


def test_widths_of_a_gguf() -> None:
    assert widths("W2.79-A8-KV8", 3.2, "q8_0") == "W2.79-A8-KV8"
    assert (widths("", 4.5, "f16"), widths("", 16.0, "q8_0")) == ("W4.50-A8-KV16", "W16.00-A16-KV8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["target has no default"]),
        (["target=[]"], ["target=[]", "target=[runs/a,runs/b]"]),
        (["target=null"], ["target= is empty"]),
        (["tiny_lama"], ["There is no target=tiny_lama", "Did you mean 'tiny_llama'"]),
        (["tiny_llama", "tiny_llama"], ["names a model twice"]),
        (["tiny_llama", "target=x"], ["in one way"]),
        (["./nowhere"], ["There is no target=./nowhere"]),
        (["README.md"], ["'README.md' is a file, and no .gguf"]),
        (["razor/evals"], ["target='razor/evals' holds no packed model"]),
        (["tiny_llama", "device=gpu"], ["device='gpu'", "cuda"]),
        (["tiny_llama", "compute_dtype=int8"], ["compute_dtype='int8'", "bfloat16"]),
        (["tiny_llama", "out=''"], ["out= is empty"]),
        (["tiny_llama", "evals.tasks=[]"], ["nothing to score", "evals=quick"]),
        (["tiny_llama", "evals=offline"], ["evals.run_generated_code=true", "humaneval_instruct"]),
        (["tiny_llama", "json=yes"], ["json=", "true or false"]),
    ],
)
def test_wrong_words(razor: Callable[..., Any], words: list[str], expected: list[str]) -> None:
    problem = razor("evaluate", *words).problem
    assert [part for part in expected if part not in problem] == [], problem
