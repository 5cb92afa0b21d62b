"""GGUF: codes bit for bit, and llama.cpp computes the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.gguf import GGUF
from razor.export.gguf.architectures import architecture
from razor.export.gguf.proof import TEXTS, logit_facts, open_for_proof
from razor.export.gguf.reading import compare
from razor.export.gguf.reference import fp32_model, probe_tokens, reference_logits, rounded_like_llama_cpp
from razor.export.gguf.writing import entries
from razor.export.manifest import check_files
from razor.models.llama_process import LlamaProcess
from razor.quant import (
    Affine,
    Float16,
    Format,
    Integer,
    LearnedScale,
    Plan,
    RowMix,
    StretchedElastic,
    Ternary,
)
from tests.export.gguf_models import ARCHITECTURES, BASE, WIDE, packed_in, random_model
from tests.export.hf_models import exported, packed, plan_of

pytest.importorskip("xllamacpp")


def types_of(folder: Path) -> dict[str, str]:
    """Type of each tensor of the one GGUF in a folder."""
    return {t.name: t.tensor_type.name for t in gguf.GGUFReader(gguf_in(folder)).tensors}


def gguf_in(folder: Path) -> Path:
    (found,) = folder.glob("*.gguf")
    return found


def proof(folder: Path) -> dict[str, Any]:
    """What the export says it has shown."""
    return dict(json.loads((folder / "manifest.json").read_text())["proof"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_computes_the_same_model(name: str, tmp_path: Path) -> None:
    compressed = packed_in(tmp_path, ARCHITECTURES[name], Integer(4, 32))
    folder = exported(compressed, GGUF(dtype="f32", runtime=True))
    found = proof(folder)
    # llama.cpp looks gelu up in a table of fp16 numbers
    assert found["largest_logit_difference"] < (1e-2 if name == "gemma3" else 1e-4), found
    assert found["texts_tokenized_alike"] == 8 and found["codes_equal"]
    assert set(types_of(folder).values()) == {"F32"}


FORMATS: dict[str, tuple[Format, str]] = {
    "ternary": (Ternary(256), "TQ1_0"),
    "ternary of a row": (Ternary("row"), "TQ1_0"),
    "one scale": (Ternary("tensor"), "TQ1_0"),
    "bf16 scales": (Ternary(256, scale_dtype="bfloat16"), "TQ1_0"),
    "ternary of 64": (Ternary(64), "Q4_0"),
    "three elastic levels": (StretchedElastic(3, 256), "TQ1_0"),
    "four elastic levels": (StretchedElastic(4, 256), "Q2_K"),
    "four elastic levels of 64": (StretchedElastic(4, 64), "Q4_0"),
    "learned": (LearnedScale(StretchedElastic(4, 32)), "Q4_0"),
    "int2": (Integer(2, 256), "TQ1_0"),
    "int3": (Integer(3, 256), "Q3_K"),
    "int3 of 32": (Integer(3, 32), "Q4_0"),
    "int4": (Integer(4, 256), "Q4_0"),
    "int5": (Integer(5, 64), "Q5_0"),
    "int6": (Integer(6, 256), "Q6_K"),
    "int6 of 32": (Integer(6, 32), "Q8_0"),
    "int8": (Integer(8, 64), "Q8_0"),
    "affine2": (Affine(2, 256), "Q2_K"),
    "affine3": (Affine(3, 256), "Q4_K"),
    "affine4": (Affine(4, 256), "Q4_K"),
    "mixed": (RowMix(Integer(4, 256), Ternary(256), 0.5), "Q4_0"),
    "mixed by error": (RowMix(Integer(4, 32), Ternary(32), 0.125, rows="error"), "Q4_0"),
    "mixed low": (RowMix(Integer(3, 256), Ternary(256), 0.25), "Q3_K"),
    "mixed with elastic": (RowMix(Integer(4, 256), StretchedElastic(4, 256), 0.5), "Q4_0"),
    "mixed with affine": (RowMix(Affine(4, 256), Ternary(256), 0.5), "Q4_K"),
    "bf16": (Float16("bfloat16"), "BF16"),
    "fp16": (Float16("float16"), "F16"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_a_type_that_holds_it(name: str, tmp_path: Path) -> None:
    format, kind = FORMATS[name]
    compressed = packed_in(tmp_path, WIDE, format)
    exporter = GGUF(runtime=False)
    exporter.check(compressed.plan, compressed.config)
    exporter.write(compressed, tmp_path)
    exporter.verify(compressed, tmp_path)  # every code and number
    found = types_of(tmp_path)
    assert found["blk.0.ffn_up.weight"] == kind
    assert found["token_embd.weight"] == "Q8_0" and found["blk.0.attn_norm.weight"] == "F32"


FEW = ("ternary", "mixed")
RUN = (*FEW, "int3", "four elastic levels", "four elastic levels of 64", "affine2", "affine4", "bf16")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in RUN]
)
def test_llama_cpp_runs_the_types(name: str, tmp_path: Path) -> None:
    compressed = packed_in(tmp_path, WIDE, FORMATS[name][0])
    exporter = GGUF(runtime=True)
    path = gguf_in(exported(compressed, exporter))
    found = proof(path.parent)
    assert found["kl_per_token"] < 2e-3 and found["fp32_head"]["largest_logit_difference"] < 1e-4, found
    # not by chance: with activations in the same blocks the reference comes much closer
    tokens, model = probe_tokens(compressed, TEXTS[0]), fp32_model(compressed)
    with rounded_like_llama_cpp(model, exporter._entries(compressed)), open_for_proof(path) as llama:
        same = logit_facts(reference_logits(model, tokens), torch.from_numpy(np.array(llama.logits(tokens))))
    assert same["kl_per_token"] < 0.5 * found["kl_per_token"], (same, found)


def test_the_other_ternary_type_and_q2_0(tmp_path: Path) -> None:
    compressed = packed_in(tmp_path, WIDE, Ternary(256))
    folder = exported(compressed, GGUF(ternary="tq2_0", runtime=True))
    assert types_of(folder)["blk.0.ffn_up.weight"] == "TQ2_0" and proof(folder)["kl_per_token"] < 2e-3
    grouped = packed_in(tmp_path / "64", WIDE, Ternary(64))
    exporter = GGUF(q2_0=True, runtime=True)
    small = exported(grouped, exporter)
    assert proof(small)["kl_per_token"] < 2e-3
    assert any("become 2.250 (Q2_0)" in line for line in exporter.costs(grouped, small))


def test_whole_matrices_keep_their_bits_and_mixed_rows_say_what_they_cost(tmp_path: Path) -> None:
    exporter = GGUF(runtime=False)
    whole = packed_in(tmp_path / "a", WIDE, Ternary(256), Integer(4, 256), v_proj=Integer(4, 256))
    folder = exported(whole, exporter)
    said = "\n".join(exporter.costs(whole, folder))
    assert "12 tensors in Ternary 1.58 bits: 1.643" in said and "become 1.688 (TQ1_0)" in said
    assert "mixed by rows" not in said
    rows = packed_in(tmp_path / "b", WIDE, RowMix(Integer(4, 256), Ternary(256), 0.5))
    said = "\n".join(exporter.costs(rows, exported(rows, exporter)))
    assert (
        "14 tensors in RowMix 2.79 bits: 2.852 bits per weight, scales included, become 4.500 (Q4_0)" in said
    )
    assert "quant=matrix_2p79" in said


@pytest.mark.parametrize(("quant", "width"), [("matrix_2p79", 2.79), ("matrix_1p88", 1.88)])
def test_quant_options_of_whole_matrices(quant: str, width: float) -> None:
    from razor.quant import measure

    config = cli.composed("size", ["model=qwen3_0p6b", f"quant={quant}"])
    source = cli.model_source(config)
    plan = cli.build(config.quant).plan(source.skeleton())
    assert measure(source.skeleton(), plan).code_bits == pytest.approx(width, abs=0.005)
    assert not any(isinstance(place.weights, RowMix) for place in plan.modules.values())
    GGUF(runtime=False).check(plan, source.config())


def test_rows_that_no_block_divides_are_fp32_and_said(tmp_path: Path) -> None:
    compressed = packed_in(
        tmp_path, BASE | {"model_type": "llama", "intermediate_size": 144}, Integer(4, "row")
    )
    exporter = GGUF(runtime=True)
    folder = exported(compressed, exporter)
    assert (
        types_of(folder)["blk.0.ffn_down.weight"] == "F32"
        and types_of(folder)["blk.0.ffn_up.weight"] == "Q4_0"
    )
    assert any("no multiple of 32" in line for line in exporter.costs(compressed, folder))


def test_what_no_type_holds_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = random_model(ARCHITECTURES["qwen3"])
    for format, text in ((Affine(4, 32), "zero points"), (Integer(4, 16), "no block")):
        with pytest.raises(RazorError, match=text) as caught:
            GGUF().check(plan_of(source, format), source.config())
        assert "21 weights" in str(caught.value) and "q_proj" in str(caught.value)
        GGUF(dtype="f32").check(plan_of(source, format), source.config())


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"model_type": "qwen2"}, "llama, qwen3, gemma3_text"),
        ({"model_type": "llama", "hidden_act": "relu"}, "hidden_act=relu"),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
            "dynamic",
        ),
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 32}, "query_pre_attn_scalar=32"),
        (
            {"model_type": "gemma3_text", "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0},
            "softcapping",
        ),
    ],
)
def test_other_architectures_are_refused(changed: dict[str, Any], text: str) -> None:
    source = random_model(BASE | changed)
    with pytest.raises(RazorError, match=text):
        GGUF(runtime=False).check(Plan({}), source.config())


def test_a_scale_beyond_fp16_is_refused(tmp_path: Path) -> None:
    compressed = packed_in(tmp_path, WIDE, Integer(4, 256, scale_dtype="bfloat16"))
    weight = next(w for w in compressed.weights() if w.name.endswith("up_proj"))
    weight.coded.scales[3, 0] = 2.0**-40
    weight.coded.forget()
    with pytest.raises(RazorError, match=r"up_proj' has a scale of 9\.09.*scale_dtype=float16"):
        GGUF(runtime=False).write(compressed, tmp_path)


def test_one_wrong_code_is_found(tmp_path: Path) -> None:
    compressed = packed_in(tmp_path, ARCHITECTURES["llama"], Integer(4, 32))
    exporter = GGUF(runtime=False)
    exporter.write(compressed, tmp_path)
    path = gguf_in(tmp_path)
    tensors = entries(compressed, architecture(compressed.config), exporter.types, False)
    compare(path, tensors)
    spot = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.1.attn_q.weight")
    with path.open("r+b") as stream:
        stream.seek(spot.data_offset + 20)
        byte = stream.read(1)[0]
        stream.seek(spot.data_offset + 20)
        stream.write(bytes([byte ^ 16]))
    with pytest.raises(RazorError, match=r"blk\.1\.attn_q\.weight"):
        compare(path, tensors)


def test_wrong_order_of_rows_is_found_in_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = packed_in(tmp_path, ARCHITECTURES["llama"], Integer(8, 32))
    monkeypatch.setattr("razor.export.gguf.architectures.Llama.paired", False)
    with pytest.raises(RazorError, match="does not compute the same model"):
        exported(compressed, GGUF(runtime=True))
    assert not (tmp_path / "gguf").exists()


def test_a_run_of_the_file(tmp_path: Path) -> None:
    """The metadata that people see, and the card."""
    compressed = packed(tmp_path, "w4", "tiny_qwen3")
    folder = exported(compressed, GGUF(runtime=True))
    check_files(folder)
    fields = {key: field.contents() for key, field in gguf.GGUFReader(gguf_in(folder)).fields.items()}
    assert fields["general.architecture"] == "qwen3" and fields["general.file_type"] == 2
    assert fields["qwen3.context_length"] == 1024 and fields["qwen3.attention.head_count_kv"] == 2
    assert fields["tokenizer.ggml.eos_token_id"] == 258 and fields["tokenizer.ggml.add_bos_token"] is False
    assert "<|im_start|>" in fields["tokenizer.chat_template"]
    assert fields["razor.bits_per_weight"] == pytest.approx(compressed.size.total.bits_per_weight)
    assert fields["razor.file_bits_per_weight"] == pytest.approx(4.617, abs=1e-3)
    card = (folder / "README.md").read_text()
    assert "llama-cli -m" in card and "read back" in card


def test_without_llama_cpp_it_is_written_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compressed = packed_in(tmp_path, ARCHITECTURES["qwen3"], Integer(4, 32))
    monkeypatch.setattr(
        "razor.models.llama_library.importlib.util.find_spec", lambda name: None if name == "xllamacpp" else 1
    )
    monkeypatch.delenv("RAZOR_LLAMA_CPP", raising=False)
    folder = exported(compressed, GGUF())
    assert "NOT run in llama.cpp" in (folder / "README.md").read_text() and proof(folder)["runtime"] is None
    for exporter in (GGUF(runtime=True), GGUF(q2_0=True)):
        with pytest.raises(RazorError, match=r"razor-qad\[llama-cpp\]"):
            exporter.check(compressed.plan, compressed.config)


def test_options_outside_their_choices() -> None:
    with pytest.raises(RazorError, match=r"tq1_0, tq2_0\."):
        GGUF(ternary="tq3")  # type: ignore[arg-type]
    with pytest.raises(RazorError, match="exact, f32"):
        GGUF(dtype="bf16")  # type: ignore[arg-type]
    config = cli.composed("train", ["export=[gguf]"])
    assert isinstance(cli.build(config.export.gguf), GGUF)


def test_reads_the_same_with_an_8_bit_cache(tmp_path: Path) -> None:
    """-ctk q8_0 -ctv q8_0, which the card recommends."""
    compressed = packed_in(tmp_path, WIDE, Integer(4, 64))
    path = gguf_in(exported(compressed, GGUF(runtime=True)))
    tokens = list(range(20, 60))
    with LlamaProcess(path, kv="f16") as plain, LlamaProcess(path, kv="q8_0") as small:
        exact, rounded = (torch.from_numpy(np.array(llama.logits(tokens))) for llama in (plain, small))
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().max() < 0.1 * exact.abs().max()


def test_opens_from_a_run_folder(tmp_path: Path) -> None:
    compressed = packed(tmp_path, "w4")
    assert Compressed.open(compressed.folder.parent).plan.to_dict() == compressed.plan.to_dict()
