"""The notebooks run, and are stored with what they show and nothing of the machine they ran on."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
QUICK = ("03_reading_a_run",)  # the others work with the real model
LARGEST = 150_000  # bytes of a picture


@pytest.fixture
def run() -> ModuleType:
    """notebooks/run.py, which is no package."""
    spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "notebooks" / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(notebook: Any) -> list[tuple[str, str]]:
    """Everything that cells put out: (kind, content)."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                found.append((output.name, output.text))
            else:
                found += [(kind, str(content)) for kind, content in sorted(output.get("data", {}).items())]
    return found


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.stem in QUICK else [pytest.mark.slow]) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_runs_from_a_copy(path: Path, run: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    copy = Path(shutil.copy(path, tmp_path))
    again, stored = run.executed(copy, tmp_path), nbformat.read(path, as_version=4)
    assert [cell.source for cell in again.cells] == [cell.source for cell in stored.cells]
    kinds = [[kind for kind, _ in shown(notebook)] for notebook in (again, stored)]
    assert kinds[0] == kinds[1]
    assert [p.name for p in tmp_path.iterdir()] == [copy.name]  # and leaves nothing behind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_it_ran(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "make notebooks"
    output = shown(notebook)
    pictures = [base64.b64decode(content) for kind, content in output if kind == "image/png"]
    assert pictures and max(map(len, pictures)) < LARGEST
    assert not [content for kind, content in output if kind == "stderr"]
    text = "".join(content for kind, content in output if not kind.startswith("image/"))
    text += "".join(cell.source for cell in notebook.cells)
    for place in (str(ROOT), str(Path.home()), "/home/", "/root/", "/tmp/", "/work/", "C:\\"):
        assert place not in text
    assert not re.search(r"^\s*(!|%%bash)", "".join(cell.source for cell in cells), re.MULTILINE)


def test_links_between_notebooks_lead_somewhere() -> None:
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        for target in re.findall(r"\]\(([^)\s]+\.ipynb)\)", "".join(cell.source for cell in cells)):
            assert (path.parent / target).is_file()
