"""The study of allocation: which cells there are, and that each has the bits it is compared at."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from razor.errors import RazorError
from tests.test_studies import load

run, tables = load("allocation/run"), load("allocation/tables")
trained, figures = load("allocation/trained"), load("allocation/figures")
shape = load("allocation/qwen3_shape")
TINY = ("model=tiny_llama", "rung=tiny", "mix=text: 1", "tokens=3000", "held_out=4", "sequence_length=128")


def test_cells_are_the_papers_and_one_for_each_score() -> None:
    found = run.cases_of(run.DEFAULTS)
    names = [f"{case.quant}_{case.method}" for case in found]
    assert len(set(names)) == len(names) and names[0] == "mixed_2p79_every_nth"
    assert "mixed_1p88_fisher_row" in names and "mixed_2p79_kl_matrix" in names
    assert not any(case.score == "kl" and case.granularity == "row" for case in found)
    with pytest.raises(RazorError, match="granularity=cell"):
        run.main(["granularity=cell"])
    with pytest.raises(RazorError, match="rows=0 must be at least 1"):
        run.main(["rows=0"])


def test_a_plan_has_no_more_bits_than_what_it_is_compared_with(
    tmp_path: Any, tiny_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAZOR_CACHE", str(tiny_cache))
    words = [*TINY, "quant=mixed_2p79", "score=weight_error", "swaps=1", "rows=4", "kl_rows=2"]
    assert run.main([*words, f"results={tmp_path}"]) == 0
    cells = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "tiny").glob("*.json")}
    assert set(cells) == {
        "mixed_2p79_every_nth_s0",
        "mixed_2p79_by_error_s0",
        "mixed_2p79_weight_error_matrix_swaps1_s0",
        "mixed_2p79_weight_error_row_swaps1_s0",
    }
    base = cells["mixed_2p79_every_nth_s0"]
    for name, cell in cells.items():
        assert cell["held_out"]["kl"] > 0 and cell["held_out"]["tokens"] == base["held_out"]["tokens"]
        if name.startswith("mixed_2p79_weight"):
            assert (
                0.99 * base["bits_per_weight"]
                < cell["bits_per_weight"]
                <= base["bits_per_weight"] * (1 + 1e-9)
            )
            assert cell["calibration_kl"][1] <= cell["calibration_kl"][0]
    assert run.main([*words, f"results={tmp_path}"]) == 0  # all there already


LIBRARY = """
class AutoScheme:
    def __init__(self, avg_bits, options, nsamples, **rest):
        self.low, self.high = (option.bits for option in options)
        assert self.low < avg_bits < self.high and nsamples > 1

class AutoRound:
    def __init__(self, model, tokenizer, scheme, **rest):
        self.model, self.scheme = model, scheme

    def post_init(self):
        names = [name for name, _ in self.model.named_modules() if name.endswith("_proj")]
        widths = [self.scheme.high if "layers.0" in name else self.scheme.low for name in names]
        self.layer_config = {name: {"bits": bits} for name, bits in zip(names, widths)}
        self.layer_config["lm_head"] = {"bits": 16}
"""


def test_another_librarys_widths_in_our_formats(
    tmp_path: Any, tiny_cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in of the package, which is this Python's: the real one takes gigabytes."""
    package = tmp_path / "package" / "auto_round"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(LIBRARY)
    schemes = "class QuantizationScheme:\n    def __init__(self, bits, **rest):\n        self.bits = bits\n"
    (package / "schemes.py").write_text(schemes)
    (tmp_path / "package" / "auto_round-0.16.1.dist-info").mkdir()
    about = tmp_path / "package" / "auto_round-0.16.1.dist-info" / "METADATA"
    about.write_text("Name: auto-round\nVersion: 0.16.1\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "package"))
    monkeypatch.setenv("RAZOR_CACHE", str(tiny_cache))
    monkeypatch.setattr(run.autoscheme, "environment_python", lambda _: sys.executable)
    places = [f"results={tmp_path}", f"runs={tmp_path / 'runs'}"]
    words = [*TINY, *places, "quant=mixed_2p79", "score=autoscheme", "rows=4"]
    assert run.main([*words, "options=seq_2_mse,int4_mse"]) == 0
    cell = json.loads((tmp_path / "tiny" / "mixed_2p79_autoscheme_matrix_s0.json").read_text())
    assert cell["code_bits"] == 0.75 * 2 + 0.25 * 4 and cell["library"] == "auto-round 0.16.1"
    base = json.loads((tmp_path / "tiny" / "mixed_2p79_every_nth_s0.json").read_text())
    assert 0.9 * base["bits_per_weight"] < cell["bits_per_weight"] <= base["bits_per_weight"]
    assert cell["held_out"]["kl"] > 0 and cell["calibration_tokens"] % 128 == 0 < cell["calibration_tokens"]
    assert not (tmp_path / "tiny" / "mixed_2p79_autoscheme_row_s0.json").exists()
    assert "matrices by `autoscheme`" in tables.said(cell)
    with pytest.raises(RazorError, match=r"apart by whole bits, and ternary has 1\.58"):
        run.main([*words, f"results={tmp_path / 'other'}", "options=ternary,int4"])


def test_a_model_of_qwen3s_kind_goes_all_the_way(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands are real, and its rows hold ternary types of GGUF; the whole of it takes minutes."""
    from razor import cli

    teacher, plan, student, parity = shape.commands(shape.DEFAULTS)
    config = cli.composed("train", [word for word in teacher[1:] if not word.startswith("hydra")])
    skeleton = cli.model_source(config).skeleton()
    assert all(
        module.in_features % 256 == 0 for name, module in skeleton.named_modules() if name.endswith("_proj")
    )
    assert cli.composed("allocate", plan[3:]).fits == "gguf"
    assert cli.composed("train", student[1:-1]).quant.plan.endswith("plan.yaml")
    assert (
        parity[-1] == "run=runs/qwen3_shape/student"
        and student[-1] == "hydra.run.dir=runs/qwen3_shape/student"
    )
    with pytest.raises(RazorError, match="steps=many must be whole numbers"):
        shape.study_making.numbers({"steps": "many"}, "steps")
    assert shape.main(["stops=3"]) == 2


def test_the_table_holds_plans_against_the_papers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_studies import cell, cells

    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.allocation("x") == tables.NOT_YET
    more = {"granularity": "row", "swaps": 0, "code_bits": 2.79}
    for method, kl in (("every_nth", 10.0), ("fisher_row", 4.0)):
        path = tmp_path / "results" / "x" / f"{method}.json"
        cells.write(path, cell("mixed_2p79", method, kl, score="fisher", **more))
    lines = tables.allocation("x").splitlines()
    assert lines[2].startswith("| `mixed_2p79` | every n-th row (the paper) | 2.79 |") and "+0 %" in lines[2]
    assert "rows by `fisher`" in lines[3] and "| 4.000 | -60 % |" in lines[3]


def test_plans_are_trained_beside_every_nth_row_at_equal_tokens(tmp_path: Any, capsys: Any) -> None:
    from tests.allocate.conftest import automatic

    found, space, _ = automatic()
    file = tmp_path / "fisher_row" / "plan.yaml"
    file.parent.mkdir()
    found.stand_in(space).plan.save(file)
    words = [f"plans=mixed_2p79:{file}", "recipe=paper,ours", "seeds=0,1", "dry_run=true"]
    assert trained.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all("experiment=ladder" in line for line in lines)
    base, own = (next(line for line in lines if f"_{name}_ours_s1" in line) for name in ("nth", "fisher_row"))
    assert "quant=mixed_2p79" in base and f"quant=plan quant.plan={file}" in own
    for line in (base, own):  # 16 steps' rows went to the start
        assert "start.rows=32" in line and "trainer.max_steps=27" in line and "seed=1" in line
    for bad, problem in (
        ("plans=", "plans= is empty"),
        (f"plans=w4:{file}", "WIDTH:FILE, the width one of mixed_2p79, mixed_1p88"),
        ("steps=16", "steps=16: recipe=ours uses 16 for its start"),
    ):
        with pytest.raises(RazorError, match=problem):
            trained.main([*words, bad])


def test_the_table_after_training_holds_plans_against_every_nth_row(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_studies import cell, cells

    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.trained() == tables.NOT_YET
    for method, kl in (("every_nth_paper", 4.0), ("found_paper", 3.0), ("every_nth_ours", 2.0)):
        path = tmp_path / "results" / "trained" / f"{method}.json"
        cells.write(path, cell("mixed_2p79", method, kl, rung="trained_43"))
    rows = [line.split(" | ") for line in tables.trained().splitlines()[2:5]]
    assert [row[1] for row in rows] == ["`ours`", "`paper`", "`paper`"]
    assert [row[-2] for row in rows] == ["+0 %", "+0 %", "-25 %"]


def test_figures_are_drawn_from_the_files_that_are_kept(
    razor: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert figures.draw_all() == [] or figures.FOUND.is_dir()
    words = ("model=tiny_llama", "trainer=cpu", "score=weight_error", "check=0", "json=true")
    found, into = tmp_path / "found", tmp_path / "drawn"
    into.mkdir()
    done = razor("allocate", *words, f"out={found}")
    assert done.code == 0, done.err
    drawn = figures.draw(found, into)
    assert [path.name for path in drawn] == ["plan.png", "sensitivity.png", "budgets.png"]
    for name in ("sensitivity", "budgets"):
        assert (into / f"{name}.png").read_bytes() == (found / f"{name}.png").read_bytes()
    monkeypatch.setattr(figures, "FOUND", found)
    text = figures.shown()
    assert text.count("](../experiments/allocation/") == 3 and "tiny_llama, 2.78 code bits" in text
