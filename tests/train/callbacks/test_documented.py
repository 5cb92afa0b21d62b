"""The callback that docs/callbacks.md shows runs as it stands, and every option is in its table."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "callbacks.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    return re.findall(rf"```{kind}\n(.*?)```", TEXT, re.DOTALL)[0]


def test_the_example_runs(
    main_job: Any, rows_of: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_callback.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(tmp_path))
    ((name, node),) = yaml.safe_load(block("yaml")).items()
    assert node.pop("_target_") == "razor.train.callbacks.weight_norm.WeightNorm"
    words = [f"+callbacks.{name}._target_=own_callback.WeightNorm"]
    done = main_job(
        *words, *(f"+callbacks.{name}.{key}={value}" for key, value in node.items()), "trainer.max_steps=4"
    )
    sys.modules.pop("own_callback", None)
    assert done.code == 0, done.err
    shown = [{key for key in row if key.startswith("weight_norm/")} for row in rows_of(done.folder)]
    expected = {f"weight_norm/model.layers.{layer}.mlp.down_proj.weight" for layer in range(4)}
    assert shown == [set(), expected, set(), expected]


def test_the_table_has_every_option() -> None:
    options = {path.stem for path in (ROOT / "conf" / "callbacks").glob("*.yaml")} - {"default", "none"}
    assert options == set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf" / "callbacks").glob("*.yaml")))
def test_every_option_builds_its_callbacks(name: str) -> None:
    from lightning.pytorch import Callback

    from razor import cli

    built = cli.build(cli.composed("train", [f"callbacks={name}"]).callbacks) or {}
    assert all(isinstance(callback, Callback) for callback in built.values())
    assert (name in built) == (name not in ("default", "none"))
