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
