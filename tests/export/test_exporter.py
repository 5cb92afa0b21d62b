"""What all exports have in common: where they may be written, what they carry along, what their card says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.errors import RazorError
from razor.export.compressed import DISTILLED, ROUNDED, Compressed
from razor.export.exporter import export
from razor.export.packed import save_packed
from razor.export.packed_exporter import Packed

ROW = {"w_a_kv": "W4-A8-KV8", "tasks": {}, "average": None, "perplexity": 12.5, "kl": 0.25}
REPORT = {"schema": 1, "rows": [{"name": "after"} | ROW], "notes": ["a note"], "steps": 7, "seed": 3}


@pytest.fixture
def run(tiny_student: Callable[..., Any], tmp_path: Path) -> Callable[[str | None], Path]:
    """A folder like that of a run, with a packed model of some origin."""

    def made(origin: str | None) -> Path:
        student, plan, tokenizer, _ = tiny_student("w4", "tiny_llama")
        about = {"model": "tiny", "quant": "w4", "origin": origin, "licence": "mit", "base": "me/tiny"}
        save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path / "packed", about)
        (tmp_path / "report.json").write_text(json.dumps(REPORT))
        return tmp_path

    return made


def exported(run: Path, out: Path | None = None) -> Path:
    return export(Compressed.open(run), {"packed": Packed()}, out or run / "exports")["packed"]


def test_the_card_has_scores_and_licence(run: Callable[..., Path]) -> None:
    folder = exported(run(DISTILLED))
    card = (folder / "README.md").read_text()
    said = (
        "quantization-aware distillation",
        "12.5",
        "0.2500",
        "license: mit",
        "base_model: me/tiny",
        "seed 3",
    )
    assert [text for text in said if text not in card] == []
    again = exported(folder, run(DISTILLED) / "exports" / "more")  # an export of an export knows them too
    assert "quantization-aware distillation" in (again / "README.md").read_text()


@pytest.mark.parametrize(("origin", "said"), [(ROUNDED, "by plain rounding"), (None, "by quantization.")])
def test_scores_of_another_model_are_not_taken(
    run: Callable[..., Path], origin: str | None, said: str
) -> None:
    card = (exported(run(origin)) / "README.md").read_text()
    assert said in card and "It was not scored" in card and "12.5" not in card


@pytest.mark.parametrize("report", ["{", "[]", '{"rows": [{"name": "after"}]}', '{"rows": 3}'])
def test_a_report_that_is_none(run: Callable[..., Path], report: str) -> None:
    folder = run(DISTILLED)
    (folder / "report.json").write_text(report)
    assert "It was not scored" in (exported(folder) / "README.md").read_text()


def test_nothing_else_goes_along(run: Callable[..., Path]) -> None:
    folder = run(DISTILLED)
    (folder / "packed" / ".env").write_text("SECRET=1")
    (folder / "packed" / "notes.txt").write_text("mine")
    names = {path.name for path in exported(folder).iterdir()}
    assert {"config.json", "model.safetensors", "razor.json", "tokenizer.json"} <= names
    assert not {".env", "notes.txt"} & names


def test_an_older_export_is_replaced_and_nothing_else(run: Callable[..., Path]) -> None:
    folder = run(DISTILLED)
    target = exported(folder)
    assert exported(folder) == target
    (target / "mine.txt").write_text("mine")
    with pytest.raises(RazorError, match=r"no export=packed alone \(see 'mine.txt'\)"):
        exported(folder)
    (target / "mine.txt").unlink()
    (target / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(RazorError, match="choose another out="):
        exported(folder)
    assert (target / "model.safetensors").is_file()
