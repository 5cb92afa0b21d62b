"""GPTQ folders: the student's codes in the published layout, and in GPTQModel its logits.

GPTQModel asks for a newer torch than Razor's tests run on, so it gets an environment of its own, made once from
the one that runs the tests and the packages that this one lacks (or RAZOR_GPTQ_PYTHON names an interpreter).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import export
from razor.export.gptq import GPTQ
from razor.export.gptq_layout import packed as gptq_tensors
from razor.export.gptq_layout import unpacked
from razor.export.hf_folder import Skeleton
from razor.export.integers import integers, matrices
from razor.export.manifest import check_files
from razor.export.shards import read_shards
from razor.models import RandomModel
from razor.quant import Affine, Float16, Format, Integer, RowMix, StretchedElastic, Ternary
from tests.conftest import ROOT
from tests.export.hf_models import QWEN2, changed_is_noticed, exported, packed, packed_by, plan_of, qwen2

ABSENT = ["gptqmodel==7.7.0", "optimum==2.3.0", "torchao==0.18.0", "device-smi", "pypcre", "tokenicer"]
ABSENT += ["logbar", "defuser", "threadpoolctl"]
PROVE = """
import sys
from pathlib import Path
from razor.export.compressed import Compressed
from razor.export.gptq import GPTQ
proof = GPTQ().verify(Compressed.open(Path(sys.argv[1])), Path(sys.argv[2]))
import json
print(json.dumps(dict(proof.facts)))
"""


def by_hand(tensors: dict[str, torch.Tensor], name: str) -> np.ndarray:
    """[out, in] fp32, a number at a time, from the published description of the layout."""
    word, zero, scale, groups = (
        tensors[f"{name}.{part}"].numpy() for part in ("qweight", "qzeros", "scales", "g_idx")
    )
    inputs, outputs = 8 * word.shape[0], word.shape[1]
    made = np.empty((outputs, inputs), np.float32)
    for i in range(inputs):
        g = int(groups[i])
        for o in range(outputs):
            q = (int(word[i // 8, o]) >> (4 * (i % 8))) & 15
            z = ((int(zero[g, o // 8]) >> (4 * (o % 8))) & 15) + 1
            made[o, i] = np.float32(q - z) * np.float32(scale[g, o])
    return made


@pytest.mark.parametrize(
    ("model", "quant"),
    [("tiny_qwen3", "mixed_2p79"), ("tiny_qwen3", "w3"), ("tiny_llama", "w4"), ("tiny_llama", "w1p58")],
)
def test_holds_the_codes_in_the_published_layout(tmp_path: Path, quant: str, model: str) -> None:
    compressed = packed(tmp_path, quant, model)
    folder = exported(compressed, GPTQ())
    check_files(folder)
    config = json.loads((folder / "config.json").read_text())
    told = config["quantization_config"]
    assert config["dtype"] == "float16"
    assert (told["quant_method"], told["bits"], told["group_size"]) == ("gptq", 4, 32)
    assert told["sym"] is True and told["desc_act"] is False and told["checkpoint_format"] == "gptq"
    tensors = read_shards(folder)
    ours = {weight.name: weight for weight in matrices(compressed, Skeleton.of(compressed.config))}
    assert len(ours) == 28
    for name, weight in ours.items():
        outputs, inputs = weight.shape
        sizes = {part: tuple(tensors[f"{name}.{part}"].shape) for part in ("qweight", "qzeros", "scales")}
        assert sizes["qweight"] == (inputs // 8, outputs) and sizes["scales"] == (inputs // 32, outputs)
        assert sizes["qzeros"] == (inputs // 32, outputs // 8)
        assert set(tensors[f"{name}.qzeros"].unique().tolist()) == {0x77777777}
        assert f"{name}.weight" not in tensors
    name = "model.layers.1.self_attn.k_proj"
    assert np.array_equal(by_hand(tensors, name), ours[name].decoded().numpy())


def test_embedding_and_head_are_sixteen_bits(tmp_path: Path) -> None:
    compressed = packed(tmp_path, "w4", "tiny_llama")
    tensors = read_shards(exported(compressed, GPTQ()))
    for weight in compressed.weights():
        if weight.name in ("lm_head", "model.embed_tokens"):
            assert torch.equal(tensors[f"{weight.name}.weight"], weight.decoded().half())


@pytest.mark.parametrize(("group", "expected"), [(64, 64), (128, 128), ("row", 128), ("tensor", 128)])
def test_larger_groups_repeat_their_scale(tmp_path: Path, group: Any, expected: int) -> None:
    source = qwen2()
    compressed = packed_by(tmp_path, source, plan_of(source, Integer(4, group)))
    folder = exported(compressed, GPTQ())  # which compares every weight
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert told["group_size"] == expected
    scales = read_shards(folder)["model.layers.0.mlp.down_proj.scales"]
    assert scales.shape == (256 // expected, 128)
    assert torch.equal(scales[0], scales[1]) == (group in ("row", "tensor"))
    assert read_shards(folder)["model.layers.0.self_attn.q_proj.bias"].dtype == torch.float16


def test_one_group_size_for_all_layers(tmp_path: Path) -> None:
    source = qwen2()
    plan = plan_of(
        source, Integer(4, 128), up_proj=Ternary(64), q_proj=RowMix(Integer(4, 32), Ternary(32), 0.5)
    )
    folder = exported(packed_by(tmp_path, source, plan), GPTQ())
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["group_size"] == 32


@pytest.mark.parametrize("format", [StretchedElastic(4, 32), Affine(2, 32), Affine(3, 32)])
def test_formats_that_fit_four_bits_symmetrically(tmp_path: Path, format: Format) -> None:
    source = qwen2()
    folder = exported(packed_by(tmp_path, source, plan_of(source, format)), GPTQ())
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["sym"] is True


def test_zero_points_are_held_where_version_1_can(tmp_path: Path) -> None:
    source = qwen2()
    plan = plan_of(source, Affine(4, 32), up_proj=Integer(4, 32))
    folder = exported(packed_by(tmp_path, source, plan), GPTQ())
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["sym"] is False
    tensors = read_shards(folder)
    assert set(tensors["model.layers.0.mlp.up_proj.qzeros"].unique().tolist()) == {0x77777777}
    assert len(tensors["model.layers.0.mlp.down_proj.qzeros"].unique()) > 10
    assert "vLLM (0.32) takes symmetric GPTQ alone" in (folder / "README.md").read_text()


def test_a_zero_point_of_zero_is_refused() -> None:
    format = Affine(4, 32)
    own = integers(format, format.encode(torch.rand(8, 64) + 1))
    with pytest.raises(RazorError, match=r"'a\.b' has zero points of 0"):
        gptq_tensors(own, 32, "a.b")
    leaning = integers(format, format.encode(torch.rand(8, 64) - 0.3))
    tensors = {f"a.b.{part}": tensor for part, tensor in gptq_tensors(leaning, 32, "a.b").items()}
    assert torch.equal(unpacked(tensors, "a.b"), leaning.decoded())


REFUSED: dict[str, tuple[list[str], str]] = {
    "16 bits": (["w16"], "16 bits"),
    "8 bits": (["w4", "quant/format@quant.weights=int8"], r"28 layers have more, first .*\(8 bits\)"),
    "groups of 16": (["w4", "model.group=16"], r"groups of 128, 64, 32 inputs.*among 16"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_hold_is_told_before_anything_is_loaded(tmp_path: Path, case: str) -> None:
    (quant, *overrides), expected = REFUSED[case]
    compressed = packed(tmp_path, quant, "tiny_llama", *overrides)
    with pytest.raises(RazorError, match=expected) as error:
        GPTQ().check(compressed.plan, compressed.config)
    assert "export=[" in str(error.value) and "\n" not in str(error.value)
    assert "loaded" not in vars(compressed)


def test_one_layer_in_sixteen_bits_is_named() -> None:
    source = qwen2()
    with pytest.raises(
        RazorError, match=r"not 'model\.layers\.0\.mlp\.up_proj' \(16 bits\), 'model\.layers\.1"
    ):
        GPTQ().check(plan_of(source, Integer(4, 32), up_proj=Float16()), source.config())


def test_outputs_come_in_eights(tmp_path: Path) -> None:
    source = RandomModel("odd", QWEN2 | {"intermediate_size": 100})
    plan = plan_of(source, Integer(4, "row"), down_proj=Integer(4, "row"))
    with pytest.raises(RazorError, match=r"multiple of 32"):
        GPTQ().check(plan, source.config())
    source = RandomModel("odd", QWEN2 | {"num_attention_heads": 16, "head_dim": 34})
    with pytest.raises(RazorError, match=r"outputs in eights; .*k_proj' has 68 \(4 layers\)"):
        GPTQ().check(plan_of(source, Integer(4, 32)), source.config())


def test_scales_that_fp16_cannot_hold_are_refused(tmp_path: Path) -> None:
    source = qwen2()
    compressed = packed_by(tmp_path, source, plan_of(source, Integer(4, 32, scale_dtype="bfloat16")))
    weight = next(iter(matrices(compressed, Skeleton.of(compressed.config))))
    exported(compressed, GPTQ())  # these happen to fit
    weight.coded.scales[0, 0] = 1e6
    with pytest.raises(RazorError, match=weight.name):
        export(compressed, {"gptq": GPTQ()}, tmp_path / "other")
    assert not (tmp_path / "other" / "gptq").exists()


@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales", "g_idx"])
def test_a_change_anywhere_is_noticed(tmp_path: Path, part: str) -> None:
    changed_is_noticed(GPTQ(), tmp_path, part)


def test_the_card_tells_what_was_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("razor.export.gptq.find_spec", lambda _: None)
    card = (exported(packed(tmp_path, "w1p58", "tiny_llama"), GPTQ()) / "README.md").read_text()
    assert "not loaded in a runtime when it was written: gptqmodel and optimum not installed" in card
    assert "codes of 1.58 bits on average are stored in four" in card and "embedding and output head" in card


@pytest.fixture(scope="module")
def gptqmodel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has GPTQModel, and all that this one has."""
    if named := os.environ.get("RAZOR_GPTQ_PYTHON"):
        return named
    home = tmp_path_factory.mktemp("gptqmodel")
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    python = home / "bin" / "python"
    own = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(own.strip()) / "tests.pth").write_text(sysconfig.get_path("purelib"))
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--ignore-installed", *ABSENT], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"GPTQModel could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return str(python)


def proven(python: str, compressed: Compressed, folder: Path) -> dict[str, Any]:
    """What the exporter proves where GPTQModel is installed."""
    done = subprocess.run(
        [python, "-c", PROVE, str(compressed.folder), str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.slow
def test_gptqmodel_gives_the_logits_of_the_packed_model(gptqmodel: str, tmp_path: Path) -> None:
    source = qwen2()
    cases = {
        "symmetric": packed(tmp_path / "a", "mixed_2p79", "tiny_qwen3"),
        "zero points, biases": packed_by(tmp_path / "b", source, plan_of(source, Affine(4, 32))),
        "rows": packed_by(tmp_path / "c", source, plan_of(source, StretchedElastic(4, "row"))),
    }
    for name, compressed in cases.items():
        facts = proven(gptqmodel, compressed, exported(compressed, GPTQ()))
        assert facts["fp32 logits"] < 1e-5, name
        assert facts["KL(bfloat16 student || float16)"] < 0.01, name


def test_the_option_builds_it() -> None:
    options = cli.build(cli.composed("export", ["run=x", "export=gptq"]).export)
    assert isinstance(options["gptq"], GPTQ)
