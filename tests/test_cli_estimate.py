"""`razor estimate`: what it prints, what it refuses; and docs/scaling.md, which shows what the code prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def test_the_command_for_people(razor: Any) -> None:
    done = razor("estimate", "model=tiny_llama", "trainer=cpu", "flops=1e12", "memory=8")
    assert done.code == 0, done.err
    for word in ("0.2 M quantized", "latents", "activations", "disk", "1 TFLOP/s", "yes, of 8.0 GB"):
        assert word in done.out
    small = razor("estimate", "model=tiny_llama", "trainer=cpu", "flops=1e12", "memory=0.1")
    assert small.code == 0 and "NO: it does not fit into 0.1 GB" in small.out
    assert "trainer.gradient_checkpointing=true" in small.out


def test_one_json_object_and_nothing_else(razor: Any) -> None:
    words = ("model=qwen3_0p6b", "trainer=fsdp2", "device=cuda", "processes=16", "nodes=2", "memory=80")
    done = razor("estimate", *words, "flops=400e12", "json=true")
    assert done.code == 0 and len(done.out.splitlines()) == 1, done.err
    found = json.loads(done.out)
    assert (found["strategy"], found["processes"], found["nodes"]) == ("fsdp2", 16, 2)
    assert found["fits"] is True and found["helps"] == {} and found["limit"] == 80 * 10**9
    assert sum(found["parts"].values()) == found["memory"] == max(found["moments"].values())
    assert found["tokens_per_second"] == pytest.approx(16 * 400e12 / found["flops_per_token"])
    assert found["flops_per_step"] == found["flops_per_token"] * 16 * 512


def test_a_device_that_is_not_here_needs_a_rate_and_a_memory(razor: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    found = json.loads(razor("estimate", "model=tiny_llama", "device=cuda", "json=true").out)
    assert found["rate"] is found["seconds"] is found["fits"] is found["limit"] is None
    text = razor("estimate", "model=tiny_llama", "trainer=gpu").out
    assert "on cuda" in text and "flops= says" in text and "memory=" in text


@pytest.mark.parametrize("words", [(), ("teacher=cached", "distill=kld"), ("teacher=tiny_qwen3",)], ids=str)
def test_calibration_times_a_few_real_micro_batches(razor: Any, words: tuple[str, ...]) -> None:
    given = ("model=tiny_llama", "trainer=cpu", "data.sequence_length=32", "calibrate=true", "json=true")
    found = json.loads(razor("estimate", *given, *words).out)
    assert "micro-batches of this shape" in found["rate_source"] and found["rate"] > 1e6


def test_calibration_that_does_not_fit_says_so(razor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("razor.train.estimate.trial.available", lambda _: 1000)
    found = json.loads(
        razor("estimate", "model=tiny_llama", "trainer=cpu", "calibrate=true", "json=true").out
    )
    assert "matrix product" in found["rate_source"] and "not free here" in found["rate_source"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["strategy=fsdp"], "strategy='fsdp'. Choices: single, ddp, fsdp2"),
        (["processes=4"], "strategy=single is one process, not 4: give strategy=ddp"),
        (["processes=0", "strategy=ddp"], "processes=0 must be a whole number of at least 1"),
        (["processes=3", "nodes=2", "strategy=ddp"], "processes=3 cannot be spread evenly over nodes=2"),
        (["device=gpu"], "device=gpu. Did you mean 'cpu'? Choices: cpu, cuda"),
        (["memory=-1"], "memory=-1 must be a number above 0: GB for a process"),
        (["flops=fast"], "flops=fast must be a number above 0: operations a second"),
        (["flops=1e12", "calibrate=true"], "flops= and calibrate=true both say how fast it is: give one"),
        (["calibrate=true", "device=cuda"], "calibrate=true times micro-batches on cuda"),
        (["data.rows_per_batch=0"], "rows=0 must be a whole number"),
        (["flop=1"], "There is no key 'flop'. Did you mean 'flops'?"),
        (["json=maybe"], "json"),
        (["model=tiny_lama"], "There is no model=tiny_lama"),
        (["distill.losses.afd.top=9"], "top=9"),
    ],
)
def test_bad_words(razor: Any, given: list[str], reason: str) -> None:
    if "device=cuda" in given and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert reason in razor("estimate", "model=tiny_llama", "trainer=cpu", *given).problem


# the document


def shown(title: str | None = None) -> list[str]:
    """Table lines of docs/scaling.md, of one model or all."""
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    part = text.split("<!-- scaling: begin -->")[1].split("<!-- scaling: end -->")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [line for line in lines if title is None or line.startswith(f"| {title} |")]


def printed(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    models = {name: title for name, title in scaling.MODELS.items() if not names or name in names}
    monkeypatch.setattr(scaling, "MODELS", models)
    return [line for line in scaling.tables(scaling.OPTIONS).splitlines() if line.startswith("| ")]


def test_the_document_shows_what_the_code_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in printed(monkeypatch, "qwen3_0p6b") if line.startswith("| Qwen3")]
    assert lines and lines == shown("Qwen3-0.6B")


@pytest.mark.slow
def test_for_every_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(monkeypatch) == shown()


def test_the_document_keeps_within_15_percent() -> None:
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    ratios = [float(ratio) for ratio in re.findall(r"^\| `.*\| ([0-9.]+) \|$", text, re.MULTILINE)]
    assert len(ratios) > 10 and all(0.85 <= ratio <= 1.15 for ratio in ratios)


@pytest.mark.slow
def test_a_real_peak_is_estimated_within_15_percent() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "estimate.py"), "only=tiny,tiny_8x1024"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [row["shape"] for row in found["shapes"]] == ["tiny", "tiny_8x1024"]
    assert all(abs(row["estimated"] / row["measured"] - 1) < 0.15 for row in found["shapes"])


@pytest.mark.slow
def test_the_main_job_warns_before_it_starts(main_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("razor.train.estimate.needs.memory_of", lambda _: 10**6)
    done = main_job()
    warnings = [line for line in done.out.splitlines() if line.startswith("warning ")]
    assert done.code == 0 and len(warnings) == 1, done.err
    assert "It does not fit" in warnings[0] and "there are 0.0 GB" in warnings[0]
