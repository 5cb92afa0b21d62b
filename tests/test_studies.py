"""The scripts that make studies, and the tables and figures made from their results."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.cli.config import composed, model_source, quantization
from razor.errors import RazorError
from razor.quant import measure
from tests.conftest import ROOT, in_process

sys.path.insert(0, str(ROOT / "experiments"))


def load(name: str) -> Any:
    """A script by its path: several studies have a `run.py`."""
    path = ROOT / "experiments" / f"{name}.py"
    named = path.stem if path.parent.name == "experiments" else f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(named, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


cells, making = load("study_cells"), load("study_making")
figures, rows = load("study_figures"), load("study_rows")
documents = load("study_documents")
tables = load("study_tables")
LADDER, SMALL_BUDGET = load("ladder/run"), load("small_budget/run")
LAYERS = load("ladder/layers")


def cell(quant: str, method: str, kl: float, seed: int = 0, **more: Any) -> dict[str, Any]:
    held_out = {"kl": kl, "perplexity": 10 * kl, "agreement": 50.0, "tokens": 99}
    found = dict.fromkeys(cells.KEYS) | {
        "quant": quant,
        "method": method,
        "seed": seed,
        "w_a_kv": "W1.58-A8-KV8",
        "tokens": 2000,
        "calibration_tokens": 0,
        "bits_per_weight": 2.3,
        "ratio_paper": 6.8 if quant == "w1p58" else 4.9,
        "held_out": held_out,
        "curve": [[0, 11.0], [2000, kl]],
        "hardware": {"device": "cpu", "name": "a processor", "cores": 2},
    }
    return found | more


def test_a_result_without_a_key_of_the_form_is_not_written(tmp_path):
    path = cells.place(tmp_path, "small", "w4", "ours", 0)
    with pytest.raises(KeyError, match="held_out"):
        cells.write(path, {key: None for key in cells.KEYS if key != "held_out"})
    assert not path.exists()
    cells.write(path, cell("w4", "ours", 0.5))
    assert cells.read(tmp_path)[0]["held_out"]["kl"] == 0.5


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "w4_ours_s0.json").write_text('{"study": "ladder"}')
    with pytest.raises(SystemExit, match=r"w4_ours_s0\.json"):
        cells.read(tmp_path)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "experiments").glob("*/results/**/*.json")), ids=lambda path: path.stem
)
def test_every_result_that_ships_has_the_form_and_says_how_it_was_made(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert set(cells.KEYS) <= set(found)
    assert found["hardware"] and found["git"] and found["command"]
    command = found["command"] if isinstance(found["command"], str) else shlex.join(found["command"])
    assert command.startswith("python ") and "/home" not in command and str(ROOT) not in command


def test_tables_and_figures_are_those_of_the_results(tmp_path):
    for path in documents.documents():
        text = path.read_text(encoding="utf-8")
        assert documents.written(text, tables.TABLES) == text, f"{path.name}: make table"
    wanted = {
        f"{drawing}_{rung.name}.png"
        for rung in (ROOT / "experiments" / "ladder" / "results").iterdir()
        if rung.is_dir()
        for drawing in figures.DRAWINGS
    }
    if cells.layers():
        wanted.add("layers.png")
    assert {path.name for path in (ROOT / "experiments" / "ladder").glob("*.png")} == wanted
    some = [cell("w1p58", "ours", 2.0), cell("w4", "ours", 0.3), cell("w1p58", "peer", 4.0)]
    for name, draw in figures.DRAWINGS.items():
        path = tmp_path / f"{name}.png"
        draw(some, path)
        assert path.stat().st_size > 5000


def test_errors_by_layer_are_a_figure_once_they_were_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "LAYERS", tmp_path / "layers.json")
    assert cells.layers() is None and tables.layers() == ""
    found = {"w_a_kv": "W1.58-A8-KV8", "rung": "cpu", "quant": "w1p58", "seed": 0, "tokens": 3800}
    found |= {"hardware": cell("", "", 0)["hardware"]}
    found |= {"errors": {"ours": [0.01, 0.2, 0.3], "rtn": [0.01, 1.1, 1.5]}}
    cells.LAYERS.write_text(json.dumps(found))
    assert "(layers.png)" in tables.layers() and "3,800 held-out tokens" in tables.layers()
    figures.layers(cells.layers(), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").stat().st_size > 5000


def test_errors_by_layer_grow_with_what_is_changed(main_job, tiny_student, monkeypatch, tmp_path, capsys):
    """Of a packed model and of one rounded again; what is missing is told before any work."""
    from razor.export.packed import save_packed

    monkeypatch.setenv("RAZOR_CACHE", str(main_job.cache))
    student, plan, tokenizer, teacher = tiny_student("w4")
    folder = tmp_path / "ladder" / "cpu" / "w4_ours_s0" / "packed"
    save_packed(student, plan, tokenizer, torch.bfloat16, folder, {})
    words = ["model=tiny_llama", "quant=w4", "rows=2", f"runs={tmp_path}"]
    words += [f"results={tmp_path / 'layers.json'}", "data.source.mix=null", "data.source.tokens=3000"]
    words += ["data.held_out=4", "data.sequence_length=128"]
    assert LAYERS.main([*words, "methods=rtn,ours"]) == 0
    found = json.loads((tmp_path / "layers.json").read_text())
    packed, rounded = found["errors"]["ours"], found["errors"]["rtn"]
    assert packed == pytest.approx(rounded, rel=1e-3)  # the very same model
    assert len(packed) == teacher.config.num_hidden_layers + 1 and 0 < packed[0] < min(packed[1:]) < 1
    assert LAYERS.main([*words, "methods=rtn,paper"]) == 2
    assert "w4_paper_s0' holds no packed model" in capsys.readouterr().err


def test_repeats_are_a_mean_with_its_spread():
    same = [cell("w1p58", "ours", kl, seed) for seed, kl in enumerate((2.0, 2.2, 2.4))]
    assert rows.held_out(same, "kl", ".2f") == "2.20 ± 0.20"
    assert rows.held_out(same[:1], "kl", ".2f") == "2.00"
    order = rows.groups([cell("w1p58", "ours", 1), cell("w4", "peer", 1), cell("w4", "rtn", 1)])
    assert list(order) == [("w4", "rtn"), ("w4", "peer"), ("w1p58", "ours")]


def test_a_budget_is_equal_for_all_who_train():
    for name, rung in LADDER.RUNGS.items():
        steps = {}
        for quant, method in itertools.product(LADDER.WIDTHS, LADDER.RATES):
            run, words = LADDER.Cell(name, quant, method, 0, 0).command(LADDER.STUDIES, Path("run"))
            given = dict(word.partition("=")[::2] for word in words)
            own = int(given.get("trainer.max_steps") or given["steps"])
            steps[quant, method] = own * rung.rows + int(given.get("start.rows", 0))
            assert int(given.get("score.rows", 0)) <= min(128, int(given.get("start.rows", 0)))
            found = "auto" in given.get("quant", "")
            assert (
                found
                == ("score.rows" in given)
                == (method == "ours" and quant in ("mixed_2p79", "mixed_1p88"))
            )
            if run is not None:
                composed("train", [word for word in words[1:] if not word.startswith("hydra.")])
        assert set(steps.values()) == {rung.steps * rung.rows}


@pytest.mark.parametrize("rung", ["small", "cpu"])
def test_cells_beside_the_peers_store_no_more_bits(rung):
    """Maps of rows that were found are counted, and still the recipe keeps what the peer's formats take."""
    found = {}
    for kept in cells.ladder(rung):
        found.setdefault(kept["quant"], {}).setdefault(kept["method"], kept["bits_per_weight"])
    compared = [bits for bits in found.values() if {"peer", "ours"} <= set(bits)]
    assert compared
    for bits in compared:
        assert bits["peer"] - 0.002 < bits["ours"] <= bits["peer"]


@pytest.mark.parametrize("quant", SMALL_BUDGET.WIDTHS)
def test_variants_of_the_ablation_have_equal_rows_and_bits(quant):
    skeleton = model_source(composed("train", ["experiment=ladder"])).skeleton()
    for name in SMALL_BUDGET.VARIANTS:
        config = composed("train", SMALL_BUDGET.words_of(name, quant, 0, 43))
        looked = (config.start or {}).get("rows", 0)
        if "budget" in config.quant:
            assert config.score.rows == looked, name
        assert config.trainer.max_steps * config.data.rows_per_batch + looked == 86, name
        bits = measure(skeleton, quantization(config, find=False).plan(skeleton)).total.bits_per_weight
        wanted = {"w1p58": 2.343, "mixed_2p79": 3.298}[quant]
        assert wanted - 0.002 < bits < wanted + 0.0005, name


@pytest.mark.parametrize(
    ("study", "word", "said"),
    [
        (LADDER, "budget=tiny", "budget=tiny. Choices: small, cpu, gpu"),
        (LADDER, "method=ours", "'method=ours' is no option"),
        (LADDER, "quant=w3", "quant=w3. Choices: w4, mixed_2p79"),
        (LADDER, "seeds=a", "seeds=a must be whole numbers"),
        (SMALL_BUDGET, "variants=kl", "variants=kl. Choices: paper"),
    ],
)
def test_a_wrong_option_is_one_line(study, word, said):
    code, _, err = in_process(lambda: study.main([word]))
    assert code == 2 and said in err and len(err.strip().splitlines()) == 1


def test_a_cell_that_is_there_is_skipped_and_a_failed_command_leaves_none(tmp_path, capsys):
    path = tmp_path / "w4_ours_s0.json"
    path.write_text("{}")
    assert not making.make(path, ["train.py", "no=such"], {})
    assert "is there" in capsys.readouterr().out
    path.unlink()
    with pytest.raises(RazorError, match="code 2"):
        making.make(path, ["train.py", "model=nothing"], {}, tmp_path / "run")
    assert not path.exists()


def test_a_teacher_may_be_told_of_by_any_run():
    told = [cell("w16", "teacher", 0.0, seed, study="ladder", command=f"c quant={seed}") for seed in (0, 1)]
    assert list(rows.groups(told)) == [("w16", "teacher")]


def test_cells_of_one_row_are_repeats_and_nothing_else():
    made = [
        cell("w4", "ours", 1.0, seed, study="ladder", steps=9, command=f"c seed={seed}") for seed in (0, 1)
    ]
    assert len(rows.groups(made)) == 1
    for change in ({"steps": 8}, {"command": "c trainer.learning_rate=1 seed=1"}, {"calibration_tokens": 5}):
        with pytest.raises(SystemExit, match="w4 ours are no repeats"):
            rows.groups([made[0], made[1] | change])


def test_texts_differ_only_within_a_seed():
    made = [cell("w4", "ours", 1.0, seed) for seed in (0, 1)]
    made[1]["held_out"]["tokens"] = 88  # a seed holds out documents of its own
    assert "not all the same" not in rows.hardware(made)
    made[1]["seed"] = 0
    assert rows.hardware(made).endswith("seed 0: 1 of 88 tokens, 1 of 99 tokens")


def test_a_run_that_came_to_nothing_has_no_change():
    lost = cell("w4", "peer", 1.0) | {"held_out": None}
    assert rows.mean_kl([lost]) == float("inf") and rows.held_out([lost], "kl", ".3f") == "-"
    assert rows.change(1.0, rows.mean_kl([lost])) == "-" and rows.change(1.0, 2.0) == "-50 %"


def test_methods_are_compared_on_the_seeds_that_both_have():
    some, others = rows.paired([cell("w4", "ours", 1.0, s) for s in (0, 1)], [cell("w4", "peer", 2.0, 1)])
    assert [each["seed"] for each in (*some, *others)] == [1, 1]


def test_scores_are_added_to_a_cell_that_has_none(tmp_path, monkeypatch):
    scores = load("study_scores")
    path = tmp_path / "w4_ours_s0.json"
    cells.write(path, cell("w4", "ours", 1.0))
    assert scores.lacks(path, 2) and not scores.lacks(path, 0)
    with pytest.raises(RazorError, match="no scores of 2 rows a task, and its run 'runs/gone' is not here"):
        scores.add(path, "runs/gone", 2)
    monkeypatch.setattr(scores, "ROOT", tmp_path)
    row = {"tasks": {"piqa": {"task": "piqa", "value": 50.0, "stderr": 3.0, "rows": 2}}, "average": 50.0}
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps({"rows": [row]}))
    (tmp_path / "runs" / "here").mkdir(parents=True)
    (tmp_path / "razor").mkdir()
    (tmp_path / "razor" / "__init__.py").touch()
    words = ["evaluate", "runs/here", "evals=quick", "evals.limit=2", "json=true"]
    program = f"import pathlib, sys; assert sys.argv[1:] == {words}"
    (tmp_path / "razor" / "__main__.py").write_text(
        f"{program}\nprint(pathlib.Path('answer.json').read_text())\n"
    )
    scores.add(path, "runs/here", 2)
    assert json.loads(path.read_text())["scores"]["average"] == 50.0 and not scores.lacks(path, 2)


def test_a_study_that_is_interrupted_waits_for_what_it_started(tmp_path):
    import os
    import signal
    import subprocess
    import time

    script = tmp_path / "slow.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_): time.sleep(1); pathlib.Path('saved').touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGINT, save); pathlib.Path('ready').touch(); time.sleep(60)\n"
    )
    outer = (
        f"import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"sys.path.insert(0, {str(ROOT / 'experiments')!r}); import pathlib, study_making\n"
        f"study_making.ROOT = pathlib.Path({str(tmp_path)!r}); study_making.done(['slow.py'])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", outer],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGINT)
    assert child.wait(60) != 0 and (tmp_path / "saved").exists()
