"""Which models of a folder can be talked to, and which one a path means."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from razor.errors import RazorError
from razor.export.manifest import write_manifest
from razor.models.llama_process import LlamaCrash
from razor.serve import opening
from razor.serve.found import find_models
from razor.serve.opening import check_llama, choose, load, open_engine
from razor.serve.playground import Playground
from razor.serve.server import Serving


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


def test_a_packed_folder_that_transformers_saved_again(packed: Path, tmp_path: Path) -> None:
    """In several files, and without the card that Razor itself writes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import razor  # noqa: F401 - registers the quantizer

    again = tmp_path / "again"
    model = AutoModelForCausalLM.from_pretrained(packed)
    model.save_pretrained(again, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(packed).save_pretrained(again)
    assert not (again / "razor.json").exists() and len(list(again.glob("*.safetensors"))) > 1
    (found,) = find_models(tmp_path)
    assert (found.name, found.kind) == ("again", "packed")
    assert found.bytes == sum(file.stat().st_size for file in again.glob("*.safetensors"))
    engine = load(found)
    assert engine.name == "again"
    engine.close()


def test_links_that_lead_nowhere(runs: Path) -> None:
    before = find_models(runs)
    (runs / "gone.gguf").symlink_to(runs / "nowhere.gguf")
    (runs / "round.gguf").symlink_to(runs / "round.gguf")
    (runs / "folder").symlink_to(runs / "nowhere", target_is_directory=True)
    assert find_models(runs) == before
    weights = runs / "b" / "packed" / "model.safetensors"
    weights.unlink()
    weights.symlink_to(runs / "nowhere.safetensors")
    found = {one.name: one for one in find_models(runs)}
    assert found["b/packed"].bytes == 0 and found["b/packed"].stamp()
    with pytest.raises(RazorError, match=r"model.safetensors"):  # told when it is opened
        load(found["b/packed"])
    with pytest.raises(RazorError, match="does not exist"):
        choose(runs / "gone.gguf")


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


def test_a_gguf_that_no_manifest_knows_is_tried_in_another_process(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp aborts on some, and would take the page and everybody's conversations with it."""
    tried: list[str] = []

    def crash(path: Path) -> None:
        tried.append(path.name)
        raise LlamaCrash(f"llama.cpp crashed on '{path}'")

    monkeypatch.setattr(opening, "check_apart", crash)
    monkeypatch.setattr(opening, "load_package", lambda: None)
    found = {one.name: one for one in find_models(runs)}
    with pytest.raises(RazorError, match=r"crashed on .*else\.gguf"):
        load(found["else.gguf"])
    with pytest.raises(RazorError, match=r"crashed on .*else\.gguf"):
        Serving(runs / "else.gguf", port=0).start()
    gguf(runs / "a" / "exports" / "gguf" / "added.gguf")  # later, beside what its manifest lists
    (added,) = (one for one in find_models(runs) if one.path.name == "added.gguf")
    with pytest.raises(RazorError, match=r"crashed on .*added\.gguf"):
        load(added)
    assert tried == ["else.gguf", "else.gguf", "added.gguf"]
    opening.check_whole(found["a/exports/gguf/tiny.gguf"])
    opening.check_whole(found["b/packed"])
    assert len(tried) == 3


def test_a_gguf_that_llama_cpp_aborts_on_ends_in_an_error_here(tmp_path: Path) -> None:
    """Two tokens of its vocabulary are the same."""
    pytest.importorskip("xllamacpp")
    from razor.export.gguf import GGUF
    from razor.quant import Integer
    from tests.export.gguf_models import WIDE, packed_in

    def token(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text

    GGUF(runtime=False).write(packed_in(tmp_path, WIDE, Integer(4, 32)), tmp_path)
    (path,) = tmp_path.glob("*.gguf")
    whole = path.read_bytes()
    broken = whole.replace(token(b"a") + token(b"b"), token(b"a") * 2)
    assert broken != whole
    path.write_bytes(broken)
    with pytest.raises(RazorError, match=r"llama\.cpp .*\.gguf'"):
        open_engine(path, "llama_cpp")


def test_what_must_not_be_read_is_told_in_a_line(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "tiny.gguf"))

    monkeypatch.setattr(opening, "check_files", forbidden)
    with pytest.raises(RazorError, match=r"tiny\.gguf' cannot be read \(Permission denied\)"):
        load(choose(runs / "a" / "exports" / "gguf" / "tiny.gguf"))


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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"context": 0}, "context='0' must be a whole number in 1"),
        ({"context": "4096"}, "context='4096' must be a whole number"),
        ({"context": True}, "context='True'"),
        ({"parallel": 257}, r"parallel='257' must be a whole number in 1\.\.256"),
        ({"threads": 0}, "threads='0'"),
        ({"kv": "q8"}, r"kv='q8'\. Did you mean 'q8_0'\? Choices: f16, q8_0"),
        ({"kv": None}, "kv='None'"),
        ({"context": 1 << 20, "parallel": 64}, "context=1048576 for each of parallel=64: 67,108,864 tokens"),
    ],
)
def test_what_llama_cpp_is_told_is_checked_first(words: dict[str, object], expected: str) -> None:
    with pytest.raises(RazorError, match=expected):
        check_llama(**({"context": 4096, "kv": "q8_0", "threads": None} | words))  # type: ignore[arg-type]
    if "parallel" not in words:  # before it is looked whether there is such a model
        with pytest.raises(RazorError, match=expected):
            open_engine(Path("nowhere"), **words)  # type: ignore[arg-type]
        with pytest.raises(RazorError, match=expected):
            Playground(Path("nowhere"), **words)  # type: ignore[arg-type]
    with pytest.raises(RazorError, match=expected):
        Serving(Path("nowhere"), **words)  # type: ignore[arg-type]


def test_opens_a_packed_folder(packed: Path) -> None:
    engine = open_engine(packed)
    assert (engine.name, engine.runtime) == ("tiny", "transformers")
