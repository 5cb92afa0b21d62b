"""The dense folder: the student's weights and logits bit for bit, for anybody who has never heard of Razor."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from razor.errors import RazorError
from razor.export.dense import Dense
from razor.export.hf_folder import Skeleton, sixteen_bit
from razor.export.loaded import bare_model, logits
from razor.export.manifest import check_files
from tests.export.hf_models import exported, packed, packed_by, qwen2

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer("Once upon a time", return_tensors="pt").input_ids
with torch.no_grad():
    torch.save({"ids": ids, "logits": model(ids).logits}, sys.argv[2])
assert "razor" not in sys.modules
"""


@pytest.mark.parametrize(
    ("model", "quant"),
    [("tiny_qwen3", "mixed_2p79"), ("tiny_qwen3", "w16"), ("tiny_llama", "w4")],  # tied, tied, untied
)
def test_holds_what_the_student_reads(tmp_path: Path, quant: str, model: str) -> None:
    compressed = packed(tmp_path, quant, model)
    folder = exported(compressed, Dense())
    check_files(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and "quantization_config" not in config
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert ("lm_head.weight" in stored) == (model == "tiny_llama")
    for weight in compressed.weights():
        found = [stored[f"{name}.weight"] for name in weight.names if f"{name}.weight" in stored]
        assert len(found) == 1 and torch.equal(found[0], weight.decoded().to(torch.bfloat16))
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_loads_where_razor_is_never_imported(tmp_path: Path) -> None:
    compressed = packed(tmp_path, "mixed_2p79", "tiny_qwen3")
    folder = exported(compressed, Dense())
    subprocess.run([sys.executable, "-c", PLAIN, folder, tmp_path / "made.pt"], check=True, cwd=tmp_path)
    made = torch.load(tmp_path / "made.pt")
    with torch.no_grad():
        bare = bare_model(compressed, torch.bfloat16)(made["ids"]).logits
        coded = compressed.model(made["ids"]).logits
    assert torch.equal(made["logits"], bare)
    assert not torch.equal(made["logits"], coded)  # which has A8 and KV8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_follows_the_compute_dtype_and_keeps_biases(tmp_path: Path, dtype: torch.dtype) -> None:
    from razor import cli

    recipe = cli.build(cli.composed("size", ["model=tiny_llama", "quant=w4", "model.kv_group=32"]).quant)
    source = qwen2()
    compressed = packed_by(tmp_path, source, recipe.plan(source.skeleton()), dtype)
    stored = load_file(exported(compressed, Dense()) / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    assert stored["model.layers.0.self_attn.q_proj.bias"].abs().sum() > 0


def test_a_change_anywhere_is_noticed(tmp_path: Path) -> None:
    compressed = packed(tmp_path, "w4", "tiny_llama")
    file = exported(compressed, Dense()) / "model.safetensors"
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"):
        state = load_file(file)
        former = state[name].clone()
        state[name].view(-1)[3] += 1
        save_file(state, file, metadata={"format": "pt"})
        with pytest.raises(RazorError, match=name):
            Dense().verify(compressed, file.parent)
        state[name] = former
        save_file(state, file, metadata={"format": "pt"})
    assert "bit for bit" in Dense().verify(compressed, file.parent).lines[1]


def test_shards_as_transformers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedModel

    own = PreTrainedModel.save_pretrained
    monkeypatch.setattr(
        PreTrainedModel, "save_pretrained", lambda model, folder: own(model, folder, max_shard_size="100KB")
    )
    compressed = packed(tmp_path, "w4", "tiny_llama")
    folder = exported(compressed, Dense())
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert (folder / "model.safetensors.index.json").is_file()


def test_a_bare_model_has_no_rounding_but_its_weights(tmp_path: Path) -> None:
    full = packed(tmp_path / "a", "w4", "tiny_llama")
    bare = packed(tmp_path / "b", "w4", "tiny_llama", "quant.activations=none", "quant.kv_cache=none")
    assert torch.equal(logits(bare_model(full, torch.bfloat16), full), logits(bare.model, bare))
    with_a8 = packed(tmp_path / "c", "w4", "tiny_llama", "quant.kv_cache=none")
    found = logits(bare_model(full, torch.bfloat16, activations=True), full)
    assert torch.equal(found, logits(with_a8.model, with_a8))


def test_numbers_too_large_for_a_dtype_are_refused(tmp_path: Path) -> None:
    compressed = packed(tmp_path, "w4", "tiny_llama")
    with torch.no_grad():
        compressed.model.model.norm.weight[0] = 1e6
    with pytest.raises(RazorError, match=r"model\.norm\.weight.*float16"):
        sixteen_bit(compressed, Skeleton.of(compressed.config), torch.float16)


def test_the_card_says_what_is_missing(tmp_path: Path) -> None:
    folder = exported(packed(tmp_path, "w4", "tiny_llama"), Dense())
    card = (folder / "README.md").read_text()
    assert "8-bit activations and the 8-bit KV cache" in card and "as large as the original" in card
