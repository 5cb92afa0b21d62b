"""`razor plan` as a command: what it prints, what it writes, what it never touches."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("this command reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_for_people(razor: Callable[..., Any]) -> None:
    done = razor("plan", "model=qwen3_0p6b", "quant=mixed_2p79")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "qwen3_0p6b, mixed_2p79 (W2.79-A8-KV8): 2.79 code bits in the decoder"
    assert max(map(len, lines)) < 150 and len(lines) < 20
    for words in ("model.layers.{0..27}.mlp.down_proj", "28 x [1024, 3072]", "5.05", "58,240 bytes a token"):
        assert words in done.out


def test_json_is_one_object_and_nothing_else(razor: Callable[..., Any], tmp_path: Path) -> None:
    done = razor("plan", "model=qwen3_0p6b", "quant=w1p58", "json=true", f"out={tmp_path}")
    assert done.code == 0 and done.err == "" and len(done.out.splitlines()) == 1
    found = json.loads(done.out)
    assert list(found) == [
        *("model", "quant", "w_a_kv", "code_bits", "bits_per_weight", "ratio_paper", "ratio_disk"),
        *("bytes_disk", "parameters", "towers", "kv_cache", "modules"),
    ]
    assert round(found["ratio_paper"], 2) == 7.03
    size = json.loads(razor("size", "model=qwen3_0p6b", "quant=w1p58", "json=true").out)
    assert {key: found[key] for key in size} == size
    assert (tmp_path / "plan.png").is_file()


def test_a_written_plan_can_be_used(razor: Callable[..., Any], tmp_path: Path) -> None:
    first = razor("plan", "model=tiny_llama", "quant=mixed_1p88", f"out={tmp_path}")
    assert [line for line in first.out.splitlines() if line.startswith("wrote ")] == [
        f"wrote {tmp_path / name}" for name in ("plan.yaml", "plan.csv", "plan.png")
    ]
    for verb in ("plan", "size"):
        made = razor(verb, "model=tiny_llama", "quant=mixed_1p88")
        again = razor(verb, "model=tiny_llama", "quant=plan", f"quant.plan={tmp_path / 'plan.yaml'}")
        assert again.out.splitlines()[1:] == made.out.splitlines()[1:]


def test_full(razor: Callable[..., Any]) -> None:
    done = razor("plan", "model=tiny_llama", "full=true")
    assert done.out.count("down_proj") == 4 and "model.layers.3.mlp.down_proj" in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["plam"], ["'plam'", "Did you mean 'plan'?"]),
        (["plan", "quant=plan"], ["plan has no default"]),
        (["plan", "quant=plan", "quant.plan=nowhere.yaml"], ["nowhere.yaml"]),
        (["plan", "model=tiny_llama", "model.group=48"], ["Group 48", "model."]),
        (["plan", "ful=true"], ["'ful'", "'full'"]),
        (["plan", "model=tiny_llama", f"out={__file__}"], ["out='", "is a file"]),
    ],
)
def test_bad_words(razor: Callable[..., Any], words: list[str], expected: list[str]) -> None:
    problem = razor(*words).problem
    assert [part for part in expected if part not in problem] == [], problem


def test_a_plan_of_another_model(razor: Callable[..., Any], tmp_path: Path) -> None:
    razor("plan", "model=tiny_llama", f"out={tmp_path}")
    done = razor("plan", "model=smollm2_135m", "quant=plan", f"quant.plan={tmp_path / 'plan.yaml'}")
    assert "says nothing about" in done.problem and "'model.layers." in done.problem


def test_seventy_billion_weights_as_a_command() -> None:
    """No weight is ever there: it takes hardly longer than a model of 0.2 million, most of that for imports."""
    taken = {}
    for model, parameters in (("tiny_llama", None), ("llama3_70b", 70_553_706_496)):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        words = ["plan", f"model={model}", "quant=mixed_2p79", "json=true"]
        done = subprocess.run(
            [sys.executable, "-m", "razor", *words], cwd=ROOT, capture_output=True, text=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and done.stderr == ""
        assert parameters in (None, json.loads(done.stdout)["parameters"])
        taken[model] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert taken["llama3_70b"] < 5 * taken["tiny_llama"]
