"""`razor allocate` and `quant=auto_*`: a plan that is found, kept, used again; what is refused before any work."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from razor.quant import Plan
from razor.storage import REPORT

TINY = (
    "model=tiny_llama",
    "trainer=cpu",
    "data.source.tokens=3000",
    "data.held_out=4",
    "data.sequence_length=128",
)
QUICK = ("score.rows=4", "kl_rows=2", "check=2")
FILES = {"plan.yaml", "plan.csv", "plan.png", "scores.safetensors", "scores.csv", "allocation.json"} | {
    "sensitivity.png",
    "budgets.png",
}


def test_a_plan_is_found_written_and_used(razor: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = razor(
        "allocate", *TINY, *QUICK, "budget=2.4", "interactions=2", "curve=2", "swaps=2", f"out={out}"
    )
    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == FILES
    lines = done.out.splitlines()
    assert (
        lines[0].startswith("tiny_llama, auto_2p4: 2.")
        and lines[-1] == f"use      quant=plan quant.plan={out}/plan.yaml"
    )
    found = json.loads((out / "allocation.json").read_text())
    made = razor("plan", "model=tiny_llama", "quant=plan", f"quant.plan={out}/plan.yaml", "json=true")
    size = json.loads(made.out)
    assert size["code_bits"] == pytest.approx(found["code_bits"], abs=1e-4) and size["code_bits"] <= 2.4
    assert size["bytes_disk"] == found["bytes"]
    assert (
        len([point for point in found["curve"] if point["kl"] is not None]) == 2
        and len(found["interactions"]) == 2
    )
    assert found["kl"] > 0 and found["refined"]["kl_after"] <= found["refined"]["kl_before"]


def test_convolutions_are_allocated_by_their_weights(razor: Callable[..., Any], tmp_path: Path) -> None:
    """What measures on text says so of a model that reads images."""
    words = ("allocate", "model=tiny_resnet", "trainer=cpu", "budget=3", f"out={tmp_path / 'found'}")
    assert "reads images" in razor(*words).problem
    done = razor(*words, "score=weight_error", "check=0", "json=true")
    assert done.code == 0, done.err
    assert 2 < json.loads(done.out)["code_bits"] <= 3


def test_json_is_one_object_and_scores_are_used_again(
    razor: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a table there is, another budget asks nobody: no text, no weights."""
    first, second = tmp_path / "first", tmp_path / "second"
    words = (*TINY, *QUICK, "score=activation_error", "json=true")
    done = razor("allocate", *words, "check=0", f"out={first}")
    assert done.code == 0 and len(done.out.splitlines()) == 1, done.err
    found = json.loads(done.out)
    assert {"code_bits", "bits_per_weight", "bytes", "predicted", "plan"} <= set(found)
    assert found["plan"] == str(first / "plan.yaml")

    def refused(*_: Any) -> None:
        raise AssertionError("this command loaded a model")

    monkeypatch.setattr("razor.models.RandomModel.load", refused)
    given = ("check=0", f"scores={first}", f"out={second}", "unit=bpw", "budget=3.2", "granularity=row")
    again = razor("allocate", *words, *given)
    assert again.code == 0, again.err
    other = json.loads(again.out)
    assert other["bits_per_weight"] <= 3.2 and other["predicted"] < found["predicted"] * 10
    assert any(
        "map:" in str(place.weights.spec()) for place in Plan.load(second / "plan.yaml").modules.values()
    )


def test_a_run_finds_its_plan_keeps_it_and_shows_it(main_job: Any) -> None:
    words = (
        "quant=auto_1p88",
        "quant.check=2",
        "score=weight_error",
        "trainer.max_steps=1",
    )
    done = main_job(*words)
    assert done.code == 0, done.err
    kept = done.folder / "allocation"
    assert {path.name for path in kept.iterdir()} == FILES
    plan = Plan.load(kept / "plan.yaml")
    recipe = yaml.safe_load((done.folder / "recipe.yaml").read_text())
    assert recipe["quant"]["plan"] == plan.to_dict() and recipe["name"] == "auto_1p88"
    report = json.loads((done.folder / REPORT).read_text())
    assert report["allocation"]["score"] == "weight_error" and report["allocation"]["code_bits"] <= 1.88
    text = (done.folder / "report.md").read_text()
    for figure in ("plan", "sensitivity", "budgets"):
        assert f"![allocation/{figure}](allocation/{figure}.png)" in text


def test_a_plan_and_a_start_look_at_the_same_text(main_job: Any) -> None:
    """So a run that uses both has seen it once."""
    words = ("quant=auto_1p88_plus", "quant.check=0", "score.rows=4", "start=gptq", "start.rows=4")
    done = main_job(*words, "trainer.max_steps=1")
    assert done.code == 0, done.err
    report = json.loads((done.folder / REPORT).read_text())
    assert report["allocation"]["calibration_tokens"] == report["start"]["tokens"] > 0
    plan = Plan.load(done.folder / "allocation" / "plan.yaml")
    mixed = [place.weights for place in plan.modules.values() if "map:" in str(place.weights.spec())]
    assert mixed, "no two formats share a matrix"


def test_a_run_that_goes_on_uses_the_plan_it_has(main_job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that was stopped before its recipe was written, and whose plan somebody changed since."""
    words = (
        "quant=auto_2p79",
        "quant.check=0",
        "score=weight_error",
        "trainer.max_steps=1",
    )
    folder = main_job.folder()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("razor.train.run.run_job", stop)
        assert main_job(*words, folder=folder).code == 130
    path = folder / "allocation" / "plan.yaml"
    text = path.read_text()
    assert not (folder / "recipe.yaml").exists() and "Integer" in text

    def again(*_: Any) -> None:
        raise AssertionError("it was searched for again")

    monkeypatch.setattr("razor.cli.allocate.searching", again)
    done = main_job.resume(folder)
    assert done.code == 0, done.err
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["quant"]["plan"] == Plan.load(path).to_dict() and path.read_text() == text


@pytest.mark.parametrize("verb", ["size", "plan", "quantize", "estimate"])
def test_verbs_that_take_a_quant_take_one_that_is_to_be_found(
    razor: Callable[..., Any], tmp_path: Path, verb: str
) -> None:
    words = ["model=tiny_llama", "quant=auto_2p79", "score=weight_error"]
    if verb in ("quantize", "estimate"):
        words += TINY[1:]
    done = razor(verb, *words, *([f"out={tmp_path / 'small'}"] if verb == "quantize" else ["json=true"]))
    assert done.code == 0, done.err
    if verb == "plan":
        found = json.loads(done.out)
        assert 2.6 < found["code_bits"] <= 2.79 and found["quant"] == "auto_2p79"


OUTSIDE = "lies outside of what options=[ternary, int2, int3, int4] can give: the smallest plan has "
BAD = [
    ("budget=1.2", f"budget=1.2 {OUTSIDE}1.58 code bits, the largest 4 code bits."),
    ("budget=9 unit=bpw", f"budget=9 {OUTSIDE}"),
    ("unit=bits", "unit=bits. Did you mean 'code_bits'? Choices: MB, bpw, code_bits, ratio."),
    ("granularity=layer", "granularity=layer. Choices: block, matrix, row."),
    (
        "options=[ternary,int44]",
        "options: there is no format 'int44'. Did you mean 'int4'? Choices: affine2, ",
    ),
    (
        "score=hessian",
        "There is no score=hessian. Choices: activation_error, fisher, kl, weight_error. They lie in conf/score/.",
    ),
    ("score=kl score.rows=200", "score.rows=200 must be 1 to 128 rows of calibration text."),
    (
        "score=kl granularity=row",
        "score=kl judges whole matrices, granularity=row wants one that tells rows apart",
    ),
    ("fits=ggml", "fits=ggml. Choices: any, gguf."),
    ("fits=gguf", f"budget=2.79 {OUTSIDE}4.5 code bits, the largest 4.5 code bits."),
    ("quant=w4", "quant=w4 leaves nothing to be found: quant=auto_2p79, budget=... for another size."),
    (
        "scores=nowhere",
        "There are no scores 'nowhere': razor allocate writes scores.safetensors into its folder.",
    ),
    ("quant=w4 score=kl", "'score' is a group of conf/ that nothing in this config reads"),
    ("interactions=-1", "interactions=-1 must be at least 0."),
    ("curve=many", "curve='many' must be a whole number, not text."),
    ("out=", "out= is empty: give a folder, or leave it out."),
    (
        "quant.exclude=[*_proj]",
        "There is nothing to decide: every weight of the decoder has its format already.",
    ),
    ("data=local_text data.source.path=nowhere.txt", "nowhere.txt"),
]


@pytest.mark.parametrize(("words", "problem"), BAD, ids=[words for words, _ in BAD])
def test_what_is_wrong_is_one_line_before_anything_heavy(
    razor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str, problem: str
) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("this command loaded a model")

    monkeypatch.setattr("razor.models.RandomModel.load", refused)
    given = ["model=tiny_llama", "trainer=cpu", f"out={tmp_path / 'found'}", *words.split()]
    given = [word for word in given if words != "out=" or not word.startswith("out=/")]
    assert problem in razor("allocate", *given).problem
    assert not (tmp_path / "found").exists()


def test_scores_of_another_model_are_refused(razor: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "found"
    quick = ("score=weight_error", "check=0", "trainer=cpu")
    assert razor("allocate", "model=tiny_llama", *quick, f"out={out}").code == 0
    problem = razor(
        "allocate", "model=tiny_qwen3", *quick, f"scores={out}", f"out={tmp_path / 'other'}"
    ).problem
    assert "holds scores of another model" in problem


def test_gguf_plans_are_what_the_exporter_takes(razor: Callable[..., Any], tmp_path: Path) -> None:
    """Nothing is told that `export=gguf` would refuse, and bytes are the file's."""
    out = tmp_path / "found"
    words = (
        "model=tiny_llama",
        "trainer=cpu",
        "score=weight_error",
        "check=0",
        "options=[ternary,int4,int8]",
    )
    done = razor("allocate", *words, "fits=gguf", "unit=bpw", "budget=7", "json=true", f"out={out}")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    types = json.loads((out / "allocation.json").read_text())["types"]
    assert set(types.values()) == {"Q4_0", "Q8_0"} and found["bits_per_weight"] <= 7
    made = razor(
        "quantize",
        "model=tiny_llama",
        "quant=plan",
        f"quant.plan={out}/plan.yaml",
        f"out={tmp_path / 'small'}",
    )
    assert made.code == 0, made.err
    sent = razor(
        "export",
        f"run={tmp_path / 'small'}",
        "export=gguf",
        "export.gguf.runtime=false",
        f"out={tmp_path / 'x'}",
    )
    assert sent.code == 0, sent.err
    from gguf import GGUFReader

    file = next((tmp_path / "x").rglob("*.gguf"))
    assert sum(int(tensor.n_bytes) for tensor in GGUFReader(file).tensors) == pytest.approx(
        found["bytes"], rel=1e-3
    )
