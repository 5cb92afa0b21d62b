"""compressed-tensors folders: the package reads our codes, Transformers our model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.export.compressed_tensors import CompressedTensors
from razor.export.exporter import export
from razor.export.hf_folder import Skeleton
from razor.export.integers import matrices
from razor.export.loaded import bare_model, kl, logits
from razor.export.manifest import check_files
from razor.export.shards import read_shards
from razor.models import RandomModel
from razor.quant import Affine, Float16, Format, Integer, Placement, Plan, RowMix, StretchedElastic, Ternary
from razor.quant.sites import sites
from tests.export.hf_models import QWEN2, changed_is_noticed, exported, packed, packed_by, plan_of, qwen2


def told(folder: Path) -> dict[str, Any]:
    """`quantization_config`."""
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


def proof(folder: Path) -> dict[str, Any]:
    """What was shown when it was written."""
    return dict(json.loads((folder / "manifest.json").read_text())["proof"])


@pytest.mark.parametrize(
    ("model", "quant"),
    [("tiny_qwen3", "mixed_2p79"), ("tiny_qwen3", "w3"), ("tiny_llama", "w4"), ("tiny_llama", "w1p58")],
)
def test_transformers_loads_the_same_model(tmp_path: Path, quant: str, model: str) -> None:
    from transformers import AutoModelForCausalLM

    compressed = packed(tmp_path, quant, model)
    folder = exported(compressed, CompressedTensors())
    check_files(folder)
    config = told(folder)
    (group,) = config["config_groups"].values()
    assert config["quant_method"] == "compressed-tensors" and config["format"] == "pack-quantized"
    assert group["targets"] == ["Linear"] and config["ignore"] == ["lm_head"]
    assert group["input_activations"] is None and config["kv_cache_scheme"] is None
    assert (group["weights"]["num_bits"], group["weights"]["group_size"]) == (4, 32)
    assert proof(folder)["fp32 logits"] < 1e-6

    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.dtype == torch.float16
    found = logits(loaded, compressed)
    student = logits(bare_model(compressed, torch.bfloat16), compressed)
    assert 0 < kl(student, found) < 0.01
    for weight in matrices(compressed, Skeleton.of(compressed.config)):
        read = loaded.get_submodule(weight.name).weight
        assert torch.equal(read, weight.decoded().half())  # decoded by the package, rounded once


def test_the_package_s_own_decompression_is_exact_in_fp32(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    compressed = packed(tmp_path, "mixed_2p79", "tiny_llama")
    folder = exported(compressed, CompressedTensors())
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    logits(loaded, compressed)  # it decompresses at the first pass
    for weight in matrices(compressed, Skeleton.of(compressed.config)):
        assert torch.equal(loaded.get_submodule(weight.name).weight, weight.decoded())


def test_layers_of_several_widths_groups_and_kinds(tmp_path: Path) -> None:
    source = qwen2()
    plan = plan_of(
        source,
        Integer(4, 32),
        up_proj=Integer(8, 64),
        down_proj=RowMix(Integer(4, 256), Ternary(256), 0.5),
        o_proj=Affine(4, 32),
        v_proj=Float16(),
        k_proj=StretchedElastic(4, "tensor"),
    )
    folder = exported(packed_by(tmp_path, source, plan), CompressedTensors())
    config = told(folder)
    assert config["ignore"] == ["lm_head", *(f"model.layers.{i}.self_attn.v_proj" for i in (0, 1))]
    found = {}
    for group in config["config_groups"].values():
        weights = group["weights"]
        for name in group["targets"]:
            found[name.rpartition(".")[2]] = weights["num_bits"], weights["group_size"]
    assert found == {
        "q_proj": (4, 32),
        "k_proj": (4, -1),
        "o_proj": (8, 32),
        "gate_proj": (4, 32),
        "up_proj": (8, 64),
        "down_proj": (4, -1),  # its only group
    }
    tensors = read_shards(folder)
    assert tensors["model.layers.0.self_attn.v_proj.weight"].dtype == torch.float16
    assert proof(folder)["fp32 logits"] < 1e-5 and proof(folder)["matrices"] == 12


@pytest.mark.parametrize(("group", "expected"), [(128, -1), (64, 64), (16, 16), ("row", -1)])
def test_groups_are_cut_only_where_vllm_needs_it(tmp_path: Path, group: Any, expected: int) -> None:
    source = qwen2()
    plan = plan_of(source, Integer(4, group), down_proj=Integer(4, "row"))
    folder = exported(packed_by(tmp_path, source, plan), CompressedTensors())
    found = {
        name.rpartition(".")[2]: group["weights"]["group_size"]
        for group in told(folder)["config_groups"].values()
        for name in group["targets"]
    }
    assert found.get("q_proj", found.get("Linear")) == expected


def test_bf16_scales_make_a_bf16_folder(tmp_path: Path) -> None:
    source = qwen2()
    both = [Integer(4, 32, scale_dtype="bfloat16"), Integer(4, 32)]
    plan = plan_of(source, both[0], ends=both[0])
    folder = exported(packed_by(tmp_path / "a", source, plan), CompressedTensors())
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert proof(folder)["fp32 logits"] < 1e-5

    compressed = packed_by(tmp_path / "b", source, plan_of(source, both[1], up_proj=both[0]))
    weight = next(w for w in matrices(compressed, Skeleton.of(compressed.config)) if "up_proj" in w.name)
    weight.coded.scales[0, 0] = 1e6
    with pytest.raises(RazorError, match=r"up_proj' has bfloat16 scales that float16"):
        exported(compressed, CompressedTensors())


@pytest.mark.parametrize("activations", ["token", "group"])
def test_activations_on_demand(tmp_path: Path, activations: Any) -> None:
    from transformers import AutoModelForCausalLM

    compressed = packed(tmp_path, "w4", "tiny_llama")
    folder = exported(compressed, CompressedTensors(activations))
    (group,) = told(folder)["config_groups"].values()
    inputs = group["input_activations"]
    assert (inputs["num_bits"], inputs["dynamic"], inputs["strategy"]) == (8, True, activations)
    assert "-128..127" in (folder / "README.md").read_text()
    found = logits(AutoModelForCausalLM.from_pretrained(folder), compressed)
    with_a8 = logits(bare_model(compressed, torch.bfloat16, activations=True), compressed)
    assert 0 < kl(with_a8, found) < 0.02
    plain = export(compressed, {"x": CompressedTensors()}, tmp_path / "plain")["compressed_tensors"]
    assert not torch.equal(found, logits(AutoModelForCausalLM.from_pretrained(plain), compressed))


def test_nothing_to_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = packed(tmp_path, "w16", "tiny_llama")
    with pytest.raises(RazorError, match="16 bits everywhere"):
        CompressedTensors().check(compressed.plan, compressed.config)
    monkeypatch.setattr("razor.export.compressed_tensors.find_spec", lambda _: None)
    with pytest.raises(RazorError, match="pip install compressed-tensors"):
        CompressedTensors().check(compressed.plan, compressed.config)
    with pytest.raises(RazorError, match="none, token, group"):
        CompressedTensors("int8")  # type: ignore[arg-type]


def test_experts_are_refused_by_name() -> None:
    fields = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
    }
    source = RandomModel("moe", QWEN2 | {"model_type": "qwen3_moe"} | fields)
    format: Format = Integer(4, 32)
    plan = Plan({name: Placement(format) for name in sites(source.skeleton())})
    with pytest.raises(RazorError, match=r"not 'model\.layers\.0\.mlp\..*' \(no linear layer\)"):
        CompressedTensors().check(plan, source.config())


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale"])
def test_a_change_anywhere_is_noticed(tmp_path: Path, part: str) -> None:
    changed_is_noticed(CompressedTensors(), tmp_path, part)


def test_a_config_that_means_another_model_is_noticed(tmp_path: Path) -> None:
    compressed = packed(tmp_path, "w4", "tiny_llama")
    folder = exported(compressed, CompressedTensors())
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(RazorError, match="other fp32 logits"):
        CompressedTensors().verify(compressed, folder)


def test_the_option_builds_it() -> None:
    words = ["run=x", "export=compressed_tensors", "export.compressed_tensors.activations=token"]
    options = cli.build(cli.composed("export", words).export)
    assert isinstance(options["compressed_tensors"], CompressedTensors)
    assert options["compressed_tensors"].activations == "token"


@pytest.mark.slow
def test_a_real_model(tmp_path: Path) -> None:
    source = cli.model_source(cli.composed("size", ["model=smollm2_135m"]))
    source.prepare()
    compressed = packed(tmp_path, "w4", "smollm2_135m")
    folder = exported(compressed, CompressedTensors())
    assert proof(folder)["fp32 logits"] < 1e-4
    assert (folder / "model.safetensors").stat().st_size < 120e6  # 57 of them 16-bit embedding
