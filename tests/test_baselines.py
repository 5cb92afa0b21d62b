"""The study of rounding after training: cells of one form, the library held to the same text, formats and bits."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.errors import RazorError

ROOT = Path(__file__).resolve().parent.parent
TINY = ("model=tiny_llama", "rung=tiny", "tokens=3000", "held_out=4", "sequence_length=128", "rows=6")

STAND_IN = '''
"""Rounds to the nearest, with the interface of the package; keeps what it was given."""
import torch

class AutoRound:
    def __init__(self, model, tokenizer, scheme, dataset, **options):
        self.model, self.scheme, self.dataset, self.options = model, scheme, dataset, options

    def quantize(self):
        group, limit = self.scheme["group_size"], 2 ** (self.scheme["bits"] - 1) - 1
        assert self.scheme["sym"] and self.options["nsamples"] == len(self.dataset)
        torch.save([row["input_ids"] for row in self.dataset], "KEPT")
        for name, weight in self.model.named_parameters():
            if name.endswith("_proj.weight"):
                x = weight.data.float().unflatten(-1, (-1, group))
                scale = (x.abs().amax(-1, keepdim=True) / limit).half().float()
                codes = (x / scale).round().clamp(-limit, limit)
                weight.data = (codes * scale).flatten(-2).to(weight.dtype)
        return self.model, {}
'''


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, main_job: Any) -> Iterator[Any]:
    """`run(words)` of a tiny study; `.cell(name)` is what it wrote, `.students` its other room."""
    monkeypatch.setenv("RAZOR_CACHE", str(main_job.cache))
    folder = ROOT / "experiments" / "baselines"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("baselines_run", folder / "run.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)  # its dataclasses ask there
    spec.loader.exec_module(script)

    class Study:
        students, form = sys.modules["students"], sys.modules["study_cells"]

        def run(self, *words: str) -> int:
            places = (f"runs={tmp_path / 'runs'}", f"results={tmp_path / 'results'}")
            return script.main([*TINY, *places, *words])

        def cell(self, name: str) -> dict[str, Any]:
            return json.loads((tmp_path / "results" / "tiny" / f"{name}.json").read_text())

    yield Study()
    for name in set(sys.modules) - before:
        if name == "students":
            del sys.modules[name]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, study: Any) -> Path:
    """A package of that name for the other process, which is this Python; where it keeps the rows."""
    kept, package = tmp_path / "kept.pt", tmp_path / "package"
    (package / "auto_round-0.16.1.dist-info").mkdir(parents=True)
    (package / "auto_round-0.16.1.dist-info" / "METADATA").write_text("Name: auto-round\nVersion: 0.16.1\n")
    (package / "auto_round.py").write_text(STAND_IN.replace("KEPT", str(kept)))
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.setattr(study.students, "environment_python", lambda _: Path(sys.executable))
    return kept


def test_our_own_methods_make_cells_once(study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("quant=w4", "method=rtn,gptq", "rows=24")  # of fewer GPTQ makes too much
    assert study.run(*words) == 0 and study.run(*words) == 0
    assert capsys.readouterr().out.count("is there already") == 2
    rtn, gptq = study.cell("w4_rtn_s0"), study.cell("w4_gptq_s0")
    assert set(study.form.KEYS) <= set(rtn) and rtn["w_a_kv"] == "W4-A8-KV8"
    assert 0 < gptq["held_out"]["kl"] < rtn["held_out"]["kl"]
    assert rtn["calibration_tokens"] == 0 < gptq["calibration_tokens"] == gptq["told"]["tokens"]
    for key in ("bits_per_weight", "ratio_paper", "bytes_disk"):
        assert rtn[key] == gptq[key]
    assert rtn["code_bits"] == 4.0
    study.run("quant=w4", "method=rtn", "activations=none")
    alone = study.cell("w4_weight_only_rtn_s0")
    assert alone["w_a_kv"] == "W4-A16-KV16" and alone["held_out"]["kl"] != rtn["held_out"]["kl"]


@pytest.mark.slow
def test_the_library_has_the_same_text_and_the_same_bits(study: Any, stand_in: Path) -> None:
    """A stand-in that rounds as we do comes to our numbers, so nothing else of the two ways differs."""
    assert study.run("quant=w4", "method=rtn,gptq,awq") == 0
    rtn, gptq, awq = (study.cell(f"w4_{method}_s0") for method in ("rtn", "gptq", "awq"))
    assert awq["held_out"] == rtn["held_out"] and awq["bits_per_weight"] == rtn["bits_per_weight"]
    assert awq["calibration_tokens"] == gptq["calibration_tokens"]
    assert awq["told"]["library"] == "auto-round 0.16.1" and awq["told"]["settings"]["sym"]
    rows = torch.load(stand_in)
    assert len(rows) == 6 and all(row.shape == (1, 128) for row in rows)


def test_weights_that_its_bits_cannot_hold_are_refused(study: Any) -> None:
    weight = torch.arange(32.0).repeat(2, 1)
    study.students.check_grid({"a": weight[:, :16]}, 4, 16)
    with pytest.raises(RazorError, match="'a' has 32 values in a group, which 4 bits cannot hold"):
        study.students.check_grid({"a": weight}, 4, 32)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quant=mixed_2p79", "method=awq"), "method=awq has no format like quant=mixed_2p79.*w4, w3, w2"),
        (("quant=w1p58", "method=rtn,autoround"), "method=autoround has no format like quant=w1p58"),
        (("method=quip",), "method=quip. Choices: rtn, gptq, start, awq, autoround"),
        (("activations=a4",), "activations=a4. Choices: a8_kv8, none"),
        (("rows=0",), "rows=0 must be at least 1"),
        (("row=3",), "'row=3' is no option"),
    ],
)
def test_what_does_not_exist_is_said_before_any_work(
    study: Any, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr(study.students.Maker, "make", None)  # whoever came to it would fail
    with pytest.raises(RazorError, match=said):
        study.run(*words)


def test_its_width_is_read_from_the_recipe(study: Any) -> None:
    from razor import cli

    width: Callable[..., int] = study.students.check_format
    for quant, bits in (("w4", 4), ("w3", 3), ("w2", 2)):
        recipe = cli.build(cli.composed("size", ["model=tiny_llama", f"quant={quant}"]).quant)
        assert width("awq", quant, recipe) == bits
