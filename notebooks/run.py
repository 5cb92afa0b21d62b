"""Run the notebooks and keep them with what they show: python notebooks/run.py [NAME ...], or make notebooks.

Kept is what cells say and draw. What goes to stderr, progress bars above all, belongs to the moment.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
SECONDS = 900
"""For one cell."""


def executed(notebook: Path, folder: Path) -> nbformat.NotebookNode:
    """A notebook after all its cells have run in `folder`; an error in one of them is raised."""
    node = nbformat.read(notebook, as_version=4)
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(
        node, timeout=SECONDS, kernel_name="python3", resources=where, record_timing=False
    ).execute()
    for cell in node.cells:
        if cell.cell_type == "code":
            cell.outputs = said(cell.outputs)
    return node


def said(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Outputs without stderr, and what was printed in one piece."""
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if output.output_type == "stream" and kept and kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def main(names: list[str]) -> None:
    """Run those whose names hold one of `names`, or all."""
    for notebook in sorted(HERE.glob("*.ipynb")):
        if names and not any(name in notebook.name for name in names):
            continue
        print(notebook.name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(notebook, Path(folder)), notebook)


if __name__ == "__main__":
    main(sys.argv[1:])
