"""The study of image classifiers: its cells, their commands and its table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from razor import cli
from razor.errors import RazorError
from tests.test_studies import load

run, tables = load("vision/run"), load("vision/tables")


def test_every_command_composes_to_its_width_and_inputs() -> None:
    made = run.cells_of(run.DEFAULTS)
    assert len(made) == len(set(made)) == 2 * 4 * 3
    seen = set()
    for each in made:
        command = each.command(Path("RUN"))
        assert command[0] == "train.py"
        config = cli.composed("train", [word for word in command[1:] if not word.startswith("hydra.")])
        recipe = cli.build(config.quant)
        inputs = "16" if recipe.activations is None else recipe.activations.label
        assert f"a{inputs}" == each.inputs and recipe.name == each.quant
        seen.add((config.model.name, recipe.name, inputs))
    assert len(seen) == 24
    with pytest.raises(RazorError, match=r"inputs=a3. Choices: a16, a8, a4"):
        run.cells_of(run.DEFAULTS | {"inputs": "a3"})


def test_a_cell_is_made_of_a_run_of_images(
    main_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_vision import CKA, TINY

    done = main_job("model=tiny_resnet", *TINY, CKA, "trainer.max_steps=2", "quant=w4")
    assert done.code == 0, done.err
    made = run.study_cells.of_run(done.folder, study="vision", rung="x", quant="w4", method="a8", command="")
    assert made["tokens"] == 16 and made["curve"][-1][0] == 16 and made["tokens_per_second"] > 0
    teacher = run.study_cells.of_run(
        done.folder, "teacher", study="vision", rung="x", quant="w16", method="teacher", command=""
    )
    monkeypatch.setattr(tables, "HERE", tmp_path)
    assert tables.vision("x") == tables.NOT_YET
    for name, each in (("a", made), ("b", teacher)):
        run.study_cells.write(tmp_path / "results" / "x" / f"{name}.json", each)
    lines = tables.vision("x").splitlines()
    assert lines[2].startswith("| W16-A16 | 16.00 | 1.00 |") and lines[3].startswith("| W4-A8 | ")
    assert f"| {made['before']['kl']:.4f} |" in lines[3]
    assert lines[-1].endswith("40 held-out images.)")
