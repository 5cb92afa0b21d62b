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
from razor.export.folder import check_place
from razor.export.manifest import MANIFEST, read_manifest
from razor.export.packed import save_packed
from razor.export.packed_exporter import Packed
from razor.export.packed_files import CARD, check_sums, files_of
from razor.export.words import check_words

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


def test_a_folder_says_which_of_its_files_are_the_models(run: Callable[..., Path]) -> None:
    """Where Transformers saved it again, and no razor.json lists them."""
    packed = run(None) / "packed"
    expected = set(files_of(packed)) - {CARD}
    (packed / CARD).unlink()
    for name in ("hf_token.txt", "notes.md", ".env"):
        (packed / name).write_text("secret")
    (packed / "tokens").mkdir()
    assert set(files_of(packed)) == expected


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "inner/../../outside", "C:\\outside", ""])
def test_names_that_lead_elsewhere_are_refused(run: Callable[..., Path], name: str) -> None:
    folder = exported(run(None))
    for file in (folder / CARD, folder / MANIFEST):
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"sha256": content["sha256"] | {name: "0" * 64}}))
    for read in (files_of, check_sums, read_manifest):
        with pytest.raises(RazorError, match="lies in another folder"):
            read(folder)


def test_exported_from_within_the_folder(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = run(DISTILLED)
    monkeypatch.chdir(home / "packed")
    compressed = Compressed.open(Path())
    assert compressed.report["seed"] == 3 and compressed.folder.parent == home


def test_errors_name_the_folder_one_knows(run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = run(None)

    def verify(_: Any, compressed: Compressed, folder: Path) -> Any:
        raise RazorError(f"'{folder}' is another model")

    monkeypatch.setattr(Packed, "verify", verify)
    with pytest.raises(RazorError) as error:
        exported(home)
    assert str(error.value) == f"'{home / 'exports' / 'packed'}' is another model"
    assert not (home / "exports" / "packed").exists()


@pytest.mark.parametrize("file", ["tokenizer.json", "generation_config.json"])
def test_words_that_are_not_the_students_end_the_proof(run: Callable[..., Path], file: str) -> None:
    home = run(None)
    compressed, folder = Compressed.open(home), home / "copy"
    compressed.tokenizer.save_pretrained(folder)
    compressed.model.generation_config.save_pretrained(folder)
    check_words(compressed, folder)
    content = json.loads((folder / file).read_text())
    if file == "tokenizer.json":
        content["normalizer"] = {"type": "Lowercase"}
    (folder / file).write_text(json.dumps(content if file == "tokenizer.json" else {"max_new_tokens": 3}))
    with pytest.raises(RazorError, match="student's"):
        check_words(compressed, folder)


def test_what_else_lies_in_a_packed_folder_is_not_lost(run: Callable[..., Path]) -> None:
    packed = run(None) / "packed"
    check_place(packed)
    (packed / ".git").mkdir()
    (packed / ".git" / "HEAD").write_text("ref")
    with pytest.raises(RazorError, match=r"holds more than a packed model \(see '\.git/HEAD'\)"):
        check_place(packed)


def test_a_tokenizer_that_is_damaged_is_told(run: Callable[..., Path]) -> None:
    home = run(None)
    (home / "packed" / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(RazorError, match="tokenizer"):
        exported(home)
