"""The side-by-side benchmarks run, alone and on tiny shapes; what they count is checked by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *words: str) -> tuple[dict[str, Any], list[str]]:
    """The JSON of the last line, and the lines before it."""
    command = [sys.executable, str(BENCHMARKS / script), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return json.loads(last), lines


STEP = ("model=tiny_llama", "rows=2", "length=32", "steps=2", "threads=1", "peer=off", "roof=false")


@pytest.mark.slow
@pytest.mark.parametrize("setting", [("dtype=mixed",), ("dtype=bf16",), ("targets=cached",)])
def test_a_step_is_timed_and_the_student_learns(setting: tuple[str, ...]) -> None:
    found, _ = run("distill_step.py", *STEP, *setting)
    assert len(found["all_seconds"]["ours"]) == 2
    assert found["tokens_per_second"]["ours"] == pytest.approx(64 / found["seconds"]["ours"])
    assert found["peak_bytes"]["ours"] > found["grown_bytes"]["ours"] > 0
    first, *_, last = found["losses"]["ours"]
    assert last < first


@pytest.mark.slow
def test_memory_of_a_loss_leaves_out_the_gradients() -> None:
    words = ("tokens=64", "vocabulary=60000", "width=128", "steps=1", "threads=1", "peer=off", "roof=false")
    found, _ = run("distill_loss.py", *words)
    # the peer would need 13 times the logits; the gradient of the weight, 31 MB, is in neither
    assert 0 < found["extra_bytes"]["ours"] < 13 * 64 * 60000 * 4
    assert found["flops"]["ours"] == pytest.approx(8 * 64 * 60000 * 128 / found["seconds"]["ours"])


@pytest.mark.slow
def test_the_curve_has_a_row_for_each_point() -> None:
    words = ("curve=true", "vocabularies=300", "lengths=8", "width=16", "tokens=4", "vocabulary=500")
    found, lines = run("distill_loss.py", *words, "steps=1", "threads=1")
    shapes = [(row["tokens"], row["vocabulary"]) for row in found["curve"]]
    assert shapes == [(4, 300), (8, 500)]
    assert len(lines) == 1 + len(shapes)


def test_a_wrong_option_is_told_with_the_choices() -> None:
    command = [sys.executable, str(BENCHMARKS / "roofline.py"), "thread=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "thread" in done.stderr and "threads" in done.stderr


def test_flops_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2-135M: 30 layers of 3.54 million, and a head of 49152 x 576."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import distill_step
    import roofline

    layer = 576 * (576 + 2 * 192 + 576) + 3 * 576 * 1536
    matrices = distill_step.matrix_parameters({"model": "smollm2_135m", "layers": 0})
    assert matrices == 30 * layer + 49152 * 576
    assert roofline.step_flops(matrices, 10, 5) == matrices * (6 * 10 + 2 * 5)


@pytest.mark.slow
def test_the_loop_is_held_against_a_bare_one() -> None:
    found, _ = run("loop.py", "model=tiny_llama", "rows=1", "length=32", "steps=4", "rounds=2")
    assert len(found["all"]["bare"]) == len(found["all"]["razor"]) == 2
    ratios = [r / b - 1 for r, b in zip(found["all"]["razor"], found["all"]["bare"], strict=True)]
    assert found["overhead"] == pytest.approx(sum(ratios) / 2, abs=0.02)


@pytest.mark.slow
def test_two_processes_are_held_against_one() -> None:
    found, _ = run("processes.py", "model=tiny_llama", "rows=1", "length=32", "rounds=3")
    ratios = sorted(one / two for one, two in zip(found["all"]["one"], found["all"]["two"], strict=True))
    assert len(ratios) == 3 and found["two / one"] == pytest.approx(ratios[1], rel=0.2)
    assert found["tokens_per_second"]["two"] == pytest.approx(64 / found["seconds"]["two"], rel=0.02)


@pytest.mark.slow
def test_ways_to_hold_a_packed_model_are_held_against_16_bits() -> None:
    words = (
        "model=tiny_llama",
        "weights=random",
        "quant=w4",
        "tokens=4",
        "prompt=4",
        "rounds=2",
        "threads=1",
    )
    found, _ = run("packed_model.py", *words)
    sides = found["sides"]
    assert sides["dense"]["speed / dense"] == sides["dense"]["tensors / dense"] == 1
    assert all(len(side["all"]) == 2 for side in sides.values())
    assert sides["packed"]["tensors_MB"] < sides["dense"]["tensors_MB"] < sides["decoded"]["tensors_MB"]
    assert found["machine"]["processor"]


@pytest.mark.slow
def test_files_of_llama_cpp_are_held_against_bf16(tmp_path: Path) -> None:
    words = ("model=tiny_qwen3", "tokens=4", "prompt=4", "rounds=2", "threads=1", f"keep={tmp_path}")
    found, _ = run("decode.py", *words, "cases=bf16,q4_0")
    first, other = found["cases"]["bf16"], found["cases"]["q4_0"]
    assert first["speed ratio"] == first["bytes ratio"] == 1
    (file,) = (tmp_path / "q4_0" / "gguf").glob("*.gguf")
    assert other["MB"] == pytest.approx(file.stat().st_size / 1e6, abs=0.05) and other["bytes ratio"] > 1


@pytest.mark.slow
def test_scores_are_timed_and_their_memory_counted() -> None:
    found, _ = run("allocation.py", "model=tiny_llama", "rows=2", "length=32", "matrices=3")
    scores = found["scores"]
    assert scores["fisher"]["matrices"] == scores["fisher"]["of"] == 28 and scores["kl"]["matrices"] == 3
    assert scores["kl"]["all_cpu_seconds"] == pytest.approx(scores["kl"]["cpu_seconds"] * 28 / 3, abs=0.2)
    assert all(score["peak_MB"] > score["model_MB"] > 0 for score in scores.values())


@pytest.mark.slow
def test_a_file_is_held_against_its_student(finished_run: Any) -> None:
    """On the run's own held-out text, token by token, as its report counts them."""
    found, _ = run("parity.py", f"run={finished_run.folder}", "f32=false")
    assert found["codes_equal"] and found["runtime"].startswith("llama.cpp")
    report = json.loads((finished_run.folder / "report.json").read_text())
    (own,) = (row["perplexity"] for row in report["rows"] if row["name"] == "after")
    read = found["perplexity"]
    assert read["student"] == pytest.approx(own, rel=0.02) and read["tokens"] > 100
    assert read["ratio"] == pytest.approx(read["llama_cpp"] / read["student"]) and read["ratio_stderr"] > 0


def test_tables_are_those_of_the_results() -> None:
    """What documents show is what the lines in benchmarks/results say."""
    sys.path.insert(0, str(BENCHMARKS / "results"))
    try:
        import tables
    finally:
        sys.path.pop(0)
    texts = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("exports.md", "allocation.md")]
    shown = {name for text in texts for _, name, _ in tables.BLOCK.findall(text)}
    assert shown == set(tables.TABLES)
    assert all(tables.written(text) == text for text in texts)
    text = texts[0]
    line = tables.lines("decode_avx2")[-1]["cases"]["q4_0"]
    assert f"| {line['tokens_per_second']} | {line['speed ratio']} |" in text
