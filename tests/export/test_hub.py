"""Pushing: exactly the files that were proven, to a repository that is private, and back from it the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from razor.errors import RazorError
from razor.export.dense import Dense
from razor.export.exporter import export
from razor.export.gptq import GPTQ
from razor.export.hub import exports_in, no_secrets, push
from razor.export.manifest import MANIFEST, write_manifest
from tests.conftest import ROOT
from tests.export.hf_models import packed
from tests.export.hub_stand_in import TOKEN, Hub, Repo

VERB = """
import sys
from razor.cli.guard import guarded
from razor.cli.push import push
sys.exit(guarded(lambda: push(sys.argv[1:]), sys.argv[1:]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as server:
        yield server


def run(
    hub: Hub | str, home: Path, code: str, *words: str, token: str | None = TOKEN
) -> subprocess.CompletedProcess[str]:
    """Python code, with arguments, in a process that knows no other hub than this."""
    left = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGING_FACE_HUB_TOKEN")
    variables = {key: value for key, value in os.environ.items() if key not in left}
    variables |= {"HF_ENDPOINT": hub if isinstance(hub, str) else hub.url, "HF_HOME": str(home / "hf")}
    variables |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    if token is not None:
        variables["HF_TOKEN"] = token
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def small_export(folder: Path, format: str = "dense") -> Path:
    """A folder with a manifest, and one file that it does not list."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nlicense: mit\ntags:\n- razor\n---\n\n# small ({format})\n")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    write_manifest(folder, format, {"model": "small", "quant": "w4"}, {})
    (folder / ".env").write_text("SECRET=1")
    return folder


def test_a_dry_run_lists_and_sends_nothing(tmp_path: Path, hub: Hub) -> None:
    folder = small_export(tmp_path / "dense")
    words = (f"folder={folder}", "repo=me/small", "dry_run=true")
    told = run(hub, tmp_path, VERB, *words, token=None)
    assert told.returncode == 0, told.stderr
    assert "model.safetensors" in told.stdout and ".env" not in told.stdout
    assert f"would be sent to {hub.url}/me/small (private)" in told.stdout
    assert hub.log == []
    as_json = json.loads(run(hub, tmp_path, VERB, *words, "json=true", "private=false", token=None).stdout)
    assert as_json["files"]["model.safetensors"] == 10240 and as_json["done"] is False
    assert as_json["private"] is False and as_json["bytes"] == sum(as_json["files"].values())


def test_sends_what_the_manifest_lists_and_no_more(tmp_path: Path, hub: Hub) -> None:
    folder = small_export(tmp_path / "dense")
    told = run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/small", "message='first light'")
    assert told.returncode == 0, told.stderr
    repo = hub.repos["me/small"]
    assert repo.private and repo.messages == ["first light"]
    listed = {"README.md", "model.safetensors", MANIFEST}
    assert repo.branches["main"] == {name: (folder / name).read_bytes() for name in listed}
    assert TOKEN not in told.stdout + told.stderr
    again = run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/small")  # changes nothing, and is no error
    assert again.returncode == 0 and len(repo.messages) == 1


def test_several_formats_and_a_branch(tmp_path: Path, hub: Hub) -> None:
    for format in ("dense", "gptq"):
        small_export(tmp_path / "exports" / format, format)
    words = (f"folder={tmp_path / 'exports'}", "repo=me/small", "revision=v2", "private=false")
    told = run(hub, tmp_path, VERB, *words)
    assert (
        told.returncode == 0 and f"sent to {hub.url}/me/small/tree/v2 (for everybody to see)" in told.stdout
    )
    repo = hub.repos["me/small"]
    assert not repo.private and repo.branches["main"] == {}
    inner = {f"{f}/{n}" for f in ("dense", "gptq") for n in ("README.md", "model.safetensors", MANIFEST)}
    assert set(repo.branches["v2"]) == inner | {"README.md"}
    front = repo.branches["v2"]["README.md"].decode()
    assert (
        front.startswith("---\nlicense: mit") and "# small-w4" in front and "(gptq/README.md): gptq" in front
    )


def test_a_public_repository_is_no_private_one(tmp_path: Path, hub: Hub) -> None:
    hub.repos["me/small"] = Repo(private=False)
    folder = small_export(tmp_path / "dense")
    told = run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/small")
    assert told.returncode == 2 and "everybody can see it: nothing was sent" in told.stderr
    assert hub.repos["me/small"].branches["main"] == {}
    assert run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/small", "private=false").returncode == 0


def test_no_token_and_a_wrong_one(tmp_path: Path, hub: Hub) -> None:
    words = (f"folder={small_export(tmp_path / 'dense')}", "repo=me/small")
    told = run(hub, tmp_path, VERB, *words, token=None)
    assert told.returncode == 2 and "HF_TOKEN" in told.stderr and "hf auth login" in told.stderr
    assert hub.log == []
    wrong = run(hub, tmp_path, VERB, *words, token="hf_" + "wrong" * 6)
    assert wrong.returncode == 2 and "401" in wrong.stderr and "wrongwrong" not in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1


def test_no_hub_at_all(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "dense")
    told = run("http://127.0.0.1:9", tmp_path, VERB, f"folder={folder}", "repo=me/small")
    assert told.returncode == 2 and "could not be pushed" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("repo", ["small", "a/b/c", "me/two words", "me/..", "", "datasets/me/x", "me/x.git"])
def test_names_that_the_hub_does_not_have(tmp_path: Path, repo: str) -> None:
    with pytest.raises(RazorError, match="NAME/REPO"):
        push(small_export(tmp_path / "dense"), repo, dry_run=True)


def test_a_damaged_export_stays_here(tmp_path: Path) -> None:
    folder = small_export(tmp_path / "exports" / "dense")
    small_export(tmp_path / "exports" / "gptq", "gptq")
    (folder / "model.safetensors").write_bytes(bytes(10240))
    for place in (folder, folder.parent):
        with pytest.raises(RazorError, match=r"dense/model\.safetensors' is damaged"):
            push(place, "me/small", dry_run=True)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RazorError, match="is missing"):
        push(folder, "me/small", dry_run=True)


def test_what_is_no_export_is_told(tmp_path: Path) -> None:
    with pytest.raises(RazorError, match="razor export run=RUN"):
        exports_in(tmp_path)
    with pytest.raises(RazorError, match="razor export run=RUN"):
        exports_in(tmp_path / "nowhere")


def test_errors_are_told_without_the_token() -> None:
    with pytest.raises(RazorError) as error, no_secrets("hf_abc", "me/x"):
        try:
            raise OSError("header hf_abc refused")
        except OSError as cause:
            raise RuntimeError("while uploading\nhf_abc") from cause
    assert "hf_abc" not in str(error.value) and "\n" not in str(error.value)
    assert "header *** refused" in str(error.value)


LOAD = """
import sys, torch, razor
from transformers import AutoModelForCausalLM, AutoTokenizer
repo, made, again = sys.argv[1:]
def logits(repo):
    model, tokenizer = (kind.from_pretrained(repo) for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
    with torch.no_grad():
        return model, tokenizer, ids, model(ids).logits
model, tokenizer, ids, found = logits(repo)
kept = {"ids": ids, "logits": found}
if again:
    model.push_to_hub(again, private=True)
    tokenizer.push_to_hub(again)
    kept["again"] = logits(again)[-1]
torch.save(kept, made)
"""


def logits_from(hub: Hub, home: Path, repo: str, again: str = "") -> dict[str, torch.Tensor]:
    """Tokens and logits of a model that another process loads from a repository, pushes, and loads from there."""
    told = run(hub, home, LOAD, repo, str(home / "made.pt"), again)
    assert told.returncode == 0, told.stderr[-3000:]
    return dict(torch.load(home / "made.pt"))


@pytest.mark.slow
def test_a_plain_folder_comes_back_the_same(tmp_path: Path, hub: Hub) -> None:
    compressed = packed(tmp_path, "w4", "tiny_llama")
    exporters = {"dense": Dense(), "gptq": GPTQ()}
    folders = export(compressed, exporters, tmp_path / "exports")
    told = run(hub, tmp_path, VERB, f"folder={folders['dense']}", "repo=me/tiny")
    assert told.returncode == 0, told.stderr
    made = logits_from(hub, tmp_path, "me/tiny")
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        assert torch.equal(
            made["logits"], AutoModelForCausalLM.from_pretrained(folders["dense"])(made["ids"]).logits
        )


def test_a_packed_model_goes_to_the_hub_and_back(tmp_path: Path, hub: Hub) -> None:
    from razor.export.packed_exporter import Packed

    compressed = packed(tmp_path, "mixed_2p79", "tiny_qwen3")
    folder = export(compressed, {"packed": Packed()}, tmp_path / "exports")["packed"]
    assert run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/packed").returncode == 0
    made = logits_from(hub, tmp_path, "me/packed", again="me/again")
    with torch.no_grad():
        expected = compressed.model(made["ids"]).logits
    assert torch.equal(made["logits"], expected)  # with A8 and KV8
    assert hub.repos["me/again"].private
    pushed = hub.repos["me/again"].branches["main"]
    assert sum(map(len, pushed.values())) < 2 * sum(file.stat().st_size for file in folder.iterdir())
    assert torch.equal(made["again"], expected)


def test_what_an_earlier_push_left_goes(tmp_path: Path, hub: Hub) -> None:
    """Old weights beside the new ones' index would be loaded in their place; what others put there stays."""
    folder = small_export(tmp_path / "dense")
    assert run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/small").returncode == 0
    files = hub.repos["me/small"].branches["main"]
    files["LICENSE"] = b"mit"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / MANIFEST).unlink()
    (folder / ".env").unlink()
    (folder / "odd[1]*.gguf").write_bytes(b"GGUF")
    write_manifest(folder, "dense", {"model": "small", "quant": "w4"}, {})
    told = run(hub, tmp_path, VERB, f"folder={folder}", "repo=me/small")
    assert told.returncode == 0, told.stderr
    assert "removed     model.safetensors" in told.stdout
    sent = {"README.md", MANIFEST, "model-00001-of-00001.safetensors", "odd[1]*.gguf"}
    assert set(files) == sent | {"LICENSE"} and len(hub.repos["me/small"].messages) == 2


def test_exports_of_two_models_are_not_one_repository(tmp_path: Path) -> None:
    for format, source in (("dense", "a"), ("gptq", "b")):
        folder = small_export(tmp_path / "exports" / format, format)
        (folder / MANIFEST).unlink()
        write_manifest(folder, format, {"model": "small"}, {}, source)
    with pytest.raises(RazorError, match=r"dense' and .*gptq' are exports of different models"):
        push(tmp_path / "exports", "me/small", dry_run=True)


def test_an_existing_repository_keeps_who_may_see_it(tmp_path: Path, hub: Hub) -> None:
    hub.repos["me/small"] = Repo(private=True)
    words = (f"folder={small_export(tmp_path / 'dense')}", "repo=me/small", "private=false", "revision=2.0")
    told = run(hub, tmp_path, VERB, *words)
    assert told.returncode == 0 and "tree/2.0 (private)" in told.stdout, told.stderr
