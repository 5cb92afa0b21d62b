"""Which models of a folder can be talked to, and which one a path means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from razor.errors import RazorError
from razor.export.manifest import write_manifest
from razor.serve import opening
from razor.serve.found import find_models
from razor.serve.opening import choose, load, open_engine


def gguf(path: Path, size: int = 2_000_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"GGUF" + bytes(size - 4))
    return path


@pytest.fixture
def runs(packed: Path, tmp_path: Path) -> Path:
    """A folder of runs: one with exports, one without, a GGUF from elsewhere, and what is no model."""
    shutil.copytree(packed, tmp_path / "a" / "packed")
    shutil.copytree(packed, tmp_path / "a" / "exports" / "packed")
    shutil.copytree(packed, tmp_path / "b" / "packed")
    file = gguf(tmp_path / "a" / "exports" / "gguf" / "tiny.gguf")
    write_manifest(file.parent, "gguf", {"w_a_kv": "W4-A8-KV8"}, {})
    dense = tmp_path / "a" / "exports" / "dense"
    dense.mkdir()
    (dense / "config.json").write_text("{}")
    (dense / "model.safetensors").write_bytes(bytes(1_500_000))
    write_manifest(dense, "dense", {"w_a_kv": "W4-A16-KV16"}, {})
    other = tmp_path / "a" / "exports" / "gptq"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    (other / "model.safetensors").write_bytes(b"x")
    gguf(tmp_path / "else.gguf")
    gguf(tmp_path / "b" / "checkpoints" / "no.gguf")
    gguf(tmp_path / ".hidden" / "no.gguf")
    return tmp_path


def test_finds_what_can_be_talked_to(runs: Path) -> None:
    found = {one.name: one for one in find_models(runs)}
    assert {name: one.kind for name, one in found.items()} == {
        "a/exports/dense": "dense",
        "a/exports/gguf/tiny.gguf": "gguf",
        "a/exports/packed": "packed",
        "a/packed": "packed",
        "b/packed": "packed",
        "else.gguf": "gguf",
    }
    assert found["a/exports/gguf/tiny.gguf"].label() == "a/exports/gguf/tiny.gguf · gguf · W4-A8-KV8 · 2.0 MB"
    assert found["a/exports/dense"].bytes == 1_500_000 and found["a/exports/dense"].bits == "W4-A16-KV16"
    weights = (runs / "b" / "packed" / "model.safetensors").stat().st_size
    assert found["b/packed"].bytes == weights and found["else.gguf"].manifest is None
    assert find_models(runs / "nowhere") == []
    assert [one.name for one in find_models(runs / "else.gguf")] == ["else.gguf"]
    assert [one.name for one in find_models(runs / "b" / "packed")] == ["packed"]


def test_damage_is_told_when_a_model_is_opened(runs: Path) -> None:
    file = runs / "a" / "exports" / "gguf" / "tiny.gguf"
    with file.open("r+b") as content:
        content.seek(1000)
        content.write(b"x")
    assert "else.gguf" in {one.name for one in find_models(runs)}
    with pytest.raises(RazorError, match=r"tiny.gguf' is damaged: its checksum"):
        open_engine(file, "llama_cpp")
    (file.parent / "manifest.json").write_text("{")
    assert file.name in {one.path.name for one in find_models(runs)}
    with pytest.raises(RazorError, match=r"manifest.json' is damaged"):
        load(choose(file))


def test_gguf_goes_first_where_llama_cpp_is(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: name == "xllamacpp")
    assert choose(runs / "a").name == "exports/gguf/tiny.gguf"
    monkeypatch.setattr(opening.importlib.util, "find_spec", lambda name: None)
    assert choose(runs / "a").name == "packed"  # and not exports/packed, which lies deeper
    assert choose(runs / "a", "transformers").name == "packed"
    assert choose(runs / "a", "llama_cpp").kind == "gguf"
    assert choose(runs / "a" / "exports" / "gguf").kind == "gguf"


def test_what_a_path_does_not_say(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RazorError, match="several packed models, name one of them: a/packed, b/packed"):
        choose(runs, "transformers")
    with pytest.raises(RazorError, match=r"engine='llama'\. Did you mean 'llama_cpp'"):
        choose(runs, "llama")
    with pytest.raises(
        RazorError, match=r"holds packed, but engine=llama_cpp needs a GGUF file \(razor export"
    ):
        choose(runs / "b", "llama_cpp")
    with pytest.raises(RazorError, match="does not exist"):
        choose(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RazorError, match="holds no packed model"):
        choose(tmp_path / "empty")
    with pytest.raises(RazorError, match="holds gguf, but engine=transformers needs a packed model"):
        choose(runs / "else.gguf", "transformers")


def test_a_missing_package_is_named(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xllamacpp", None)
    with pytest.raises(RazorError, match=r"pip install 'razor-qad\[llama-cpp\]'"):
        open_engine(runs / "else.gguf", "llama_cpp")


def test_opens_a_packed_folder(packed: Path) -> None:
    engine = open_engine(packed)
    assert (engine.name, engine.runtime) == ("tiny", "transformers")
