"""`razor plan`: every line against the tensors that are really stored, and against arithmetic by hand."""

from __future__ import annotations

import csv
import json
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.evals.format_names import format_name
from razor.evals.plan_lines import PlanLine, folded
from razor.evals.plan_table import PlanTable
from razor.models import RandomModel, quant_cache
from razor.quant import (
    Affine,
    Float16,
    Integer,
    LearnedScale,
    Plan,
    RowMix,
    Size,
    StretchedElastic,
    Ternary,
    packed_state,
)
from razor.recipe import Override, PlanFile, QuantRecipe

MOE: Mapping[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}


def table(*overrides: str) -> PlanTable:
    config = cli.composed("plan", list(overrides))
    return PlanTable(cli.model_source(config), cli.build(config.quant))


def uneven() -> PlanTable:
    """A tiny qwen3 with int8 in one kind of matrix and layer 2 left alone."""
    config = cli.composed("plan", ["model=tiny_qwen3"])
    int4 = Integer(4, 32)
    recipe = QuantRecipe(
        "uneven",
        RowMix(int4, Ternary(32), 0.5),
        int4,
        Integer(8, 32),
        Integer(8, 16),
        overrides={"*.v_proj": Override(weights=Integer(8, 32))},
        exclude=["model.layers.2.*"],
    )
    return PlanTable(cli.model_source(config), recipe)


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_qwen3"])
@pytest.mark.parametrize("quant", ["mixed_1p88", "w1p58", "w16"])
def test_bytes_of_every_line_are_those_of_its_stored_tensors(
    tiny_student: Any, quant: str, model: str
) -> None:
    student, plan, _, _ = tiny_student(quant, model)
    stored = packed_state(student, plan)
    lines = [line for line in table(f"model={model}", f"quant={quant}").lines if line.tied_to is None]
    for line in lines:
        own = f"{line.name}.coded." if line.part != "rest" else line.name
        found = {name: tensor for name, tensor in stored.items() if name.startswith(own)}
        assert found and line.size.bytes_disk == sum(t.nbytes for t in found.values()), line.name
        stored = {name: tensor for name, tensor in stored.items() if name not in found}
    assert stored == {}


def test_a_tied_weight_is_counted_once_and_said_twice() -> None:
    tied = table("model=tiny_qwen3", "quant=w4")
    embedding, head = tied.lines[:2]
    assert (embedding.name, embedding.tied_to, embedding.activations) == ("model.embed_tokens", None, "-")
    assert (head.name, head.tied_to, head.activations) == ("lm_head", "model.embed_tokens", "int8 g32")
    assert embedding.size.parameters == 272 * 64 and head.size == Size()
    row = next(line for line in tied.text().splitlines() if line.startswith("lm_head"))
    assert row.split() == ["lm_head", "[272,", "64]", "=", "model.embed_tokens", "int8", "g32"]
    own = table("model=tiny_llama", "quant=w4")
    assert own.lines[-1].name == "lm_head" and own.lines[-1].size.parameters == 272 * 64


def test_figures_of_json_add_up() -> None:
    found = table("model=qwen3_0p6b", "quant=mixed_2p79").summary()
    modules = found["modules"]
    assert sum(m["bytes_disk"] for m in modules) == found["bytes_disk"]
    assert sum(m["parameters"] for m in modules) == found["parameters"] == 596_049_920
    assert sum(m["share"] for m in modules) == pytest.approx(1, abs=1e-3)
    assert round(found["ratio_paper"], 2) == 5.05 and found["code_bits"] == 2.79
    assert found["bits_per_weight"] == pytest.approx(16 / found["ratio_paper"], rel=1e-4)
    assert len(modules) == 2 + 28 * 7 + 28 * 4 + 1
    down = next(m for m in modules if m["module"] == "model.layers.3.mlp.down_proj")
    # 512 rows of each kind: half a byte or a fifth (3072 trits: 615 bytes), twelve scales a row
    assert down["bytes_disk"] == 512 * 1536 + 512 * 615 + 1024 * 12 * 2
    assert down["shape"] == [1024, 3072] and down["weights"] == "1/2 int4 + 1/2 ternary g256"
    assert down["code_bits"] == 2.79 and down["bits_per_weight"] == 2.8525
    assert json.loads(json.dumps(found)) == found


def test_the_table_folds_equal_layers_and_names_exceptions() -> None:
    text = uneven().text()
    rows = [line.split("  ") for line in text.splitlines()]
    found = {row[0]: [cell.strip() for cell in row if cell.strip()][1:] for row in rows if row[0]}
    assert found["model.layers.{0..1,3}.self_attn.v_proj"][:3] == ["3 x [32, 64]", "int8 g32", "int8 g32"]
    assert found["model.layers.{0..1,3}.mlp.up_proj"][1] == "1/2 int4 + 1/2 ternary g32"
    alone = found["model.layers.2.mlp.up_proj"]
    assert alone[:5] == ["[128, 64]", "bf16", "-", "16.000", "16.000"]
    assert found["norms, biases"][0] == "17 tensors"
    assert "model.layers.0.mlp.up_proj" not in text and "2.79" not in found["all"]


def test_full_has_a_line_for_every_parameter() -> None:
    whole = uneven()
    text = whole.text(full=True)
    for line in whole.lines:
        assert f"\n{line.name} " in text
    assert "{" not in text


def test_folding_keeps_every_figure() -> None:
    lines = uneven().lines
    small = folded(lines)
    assert len(small) < len(lines) / 2
    assert sum(line.count for line in small) == len(lines)
    assert sum((line.size for line in small), Size()).bytes_disk == sum(x.size.bytes_disk for x in lines)


def test_folding_of_several_numbers_and_of_gaps() -> None:
    def line(name: str, weights: str = "int4") -> PlanLine:
        return PlanLine(name, "linear", (2, 3), weights, "-", Size(6, 24, 0, 3))

    experts = [line(f"l.{layer}.e.{expert}.w") for layer in range(3) for expert in range(4)]
    assert [(x.name, x.count, x.size.parameters) for x in folded(experts)] == [
        ("l.{0..2}.e.{0..3}.w", 12, 72)
    ]
    ragged = [line("l.0.e.0.w"), line("l.0.e.1.w"), line("l.1.e.0.w")]
    assert [x.name for x in folded(ragged)] == ["l.0.e.{0..1}.w", "l.1.e.0.w"]
    gaps = [line(f"l.{layer}.w") for layer in (0, 1, 2, 5, 7, 8)]
    assert [x.name for x in folded(gaps)] == ["l.{0..2,5,7..8}.w"]
    other = [line("l.0.w"), line("l.1.w", "int8"), line("l.2.w")]
    assert [(x.name, x.weights) for x in folded(other)] == [("l.{0,2}.w", "int4"), ("l.1.w", "int8")]
    assert folded([]) == []


@pytest.mark.parametrize(("quant", "model"), [("w4", "tiny_qwen3"), ("w4", "tiny_llama")])
def test_kv_bytes_are_those_of_a_cache(tiny_student: Any, quant: str, model: str) -> None:
    student, *_ = tiny_student(quant, model)
    cache = quant_cache(student)
    with torch.no_grad():
        student(torch.arange(10, 17).unsqueeze(0), past_key_values=cache, use_cache=True)
    found = table(f"model={model}", f"quant={quant}").kv_cache
    assert found is not None
    assert found.bytes_per_token * 7 == cache.nbytes
    assert (
        found.bytes_per_token_16bit == 2 * 2 * 4 * 2 * 16
    )  # keys and values, 2 bytes, layers, heads, head_dim


def test_kv_cache_left_alone() -> None:
    found = table("model=tiny_llama", "quant=w4", "quant.kv_cache=none").kv_cache
    assert found is not None and found.format == "16 bit"
    assert found.bytes_per_token == found.bytes_per_token_16bit


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    recipe = QuantRecipe("moe", Ternary(32), Integer(4, 32), Integer(8, 32), Integer(8, 16))
    experts = PlanTable(RandomModel("moe", MOE), recipe)
    line = next(x for x in experts.lines if x.name == "model.layers.1.mlp.experts.gate_up_proj")
    assert line.shape == (4, 64, 64) and line.size.bytes_disk == 4 * 64 * (13 + 2 * 2)
    text = experts.text()
    assert "model.layers.{0..2}.mlp.experts.down_proj" in text
    router = next(row for row in text.splitlines() if row.startswith("model.layers.{0..2}.mlp.gate.weight"))
    assert "bf16" in router
    experts.write(tmp_path)


def test_seventy_billion_weights_in_seconds() -> None:
    started = time.process_time()
    found = table("model=llama3_70b", "quant=mixed_2p79")
    text, figures = found.text(), found.summary()
    assert time.process_time() - started < 60  # of a slow machine; with weights it would be hours
    hidden, wide, kv = 8192, 28672, 8 * 128
    layer = 2 * hidden * hidden + 2 * kv * hidden + 3 * wide * hidden
    matrices, tables, norms = 80 * layer, 2 * 128256 * hidden, (2 * 80 + 1) * hidden
    assert figures["parameters"] == matrices + tables + norms == 70_553_706_496
    bits = matrices * (2.79 + 16 / 256) + tables * (4 + 16 / 256) + norms * 16
    assert figures["ratio_paper"] == pytest.approx(16 * figures["parameters"] / bits, abs=1e-4)
    assert figures["kv_cache"]["bytes_per_token"] == 80 * 2 * 8 * (128 + 2)
    assert "80 x [28672, 8192]" in text and len(text.splitlines()) < 20


def test_a_written_plan_is_the_plan(tmp_path: Path) -> None:
    made = uneven()
    paths = made.write(tmp_path / "deep" / "folder")
    assert [path.name for path in paths] == ["plan.yaml", "plan.csv", "plan.png"]
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["plan.csv", "plan.png", "plan.yaml"]
    assert Plan.load(paths[0]).to_dict() == made.plan.to_dict()
    again = PlanTable(
        cli.model_source(cli.composed("plan", ["model=tiny_qwen3"])), PlanFile("x", str(paths[0]))
    )
    assert again.text().splitlines()[2:] == made.text().splitlines()[2:]
    with paths[1].open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["module"] for row in rows] == [line.name for line in made.lines]
    assert sum(int(row["bytes_disk"]) for row in rows) == made.size.total.bytes_disk
    assert rows[2]["shape"] == "64x64" and rows[1]["tied_to"] == "model.embed_tokens"
    made.write(tmp_path / "deep" / "folder")  # again, over itself


def test_out_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RazorError, match=r"out='.*file' is a file"):
        uneven().write(tmp_path / "file")


def colours(path: Path) -> int:
    picture = matplotlib.image.imread(path)
    assert picture.shape[0] > 200 and picture.shape[1] > 800
    return len({tuple(pixel) for pixel in (picture[::3, ::3, :3] * 255).astype(int).reshape(-1, 3).tolist()})


def test_the_figure_shows_formats_by_colour(tmp_path: Path) -> None:
    uneven().write(tmp_path)
    even = table("model=tiny_qwen3", "quant=w16").write(tmp_path / "even")
    assert colours(tmp_path / "plan.png") > colours(even[2]) > 1


def test_the_figure_of_many_formats(tmp_path: Path) -> None:
    config = cli.composed("plan", ["model=tiny_llama"])
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    overrides = {f"*.{kind}": Override(weights=Integer(2 + i, 32)) for i, kind in enumerate(kinds)}
    overrides |= {"model.layers.1.*": Override(weights=Affine(2, 16)), "lm_head": Override(weights=Float16())}
    recipe = QuantRecipe("many", Ternary(32), Integer(4, 32), None, None, overrides=overrides)
    paths = PlanTable(cli.model_source(config), recipe).write(tmp_path)
    assert colours(paths[2]) > 10


@pytest.mark.parametrize(
    ("format", "name"),
    [
        (None, "-"),
        (Integer(4, 64), "int4 g64"),
        (Integer(8, "row", scale="mse"), "int8 scale=mse per row"),
        (Ternary(256), "ternary g256"),
        (Ternary(64, factor=1.0), "ternary factor=1 g64"),
        (Float16(), "bf16"),
        (Float16("float16"), "fp16"),
        (Affine(3, 32), "affine3 g32"),
        (StretchedElastic(4, "tensor"), "elastic4 per tensor"),
        (LearnedScale(Ternary(64), 3.0), "learned ternary lr_multiplier=3 g64"),
        (RowMix(Integer(4, 64), Ternary(64), 0.125), "1/8 int4 + 7/8 ternary g64"),
        (RowMix(Integer(4, 64), Ternary(64), 0.5, "error"), "1/2 int4 + 1/2 ternary by error g64"),
    ],
)
def test_names_of_formats(format: Any, name: str) -> None:
    assert format_name(format) == name


def test_the_document_shows_what_its_command_prints() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "plans.md").read_text(encoding="utf-8")
    _, command, _, shown, *_ = text.split("## Reading it")[1].split("```")
    words = shlex.split(command.removeprefix("bash").replace("\\\n", " "))
    assert words[:2] == ["razor", "plan"]
    made = table(*(word for word in words[2:] if not word.startswith("out="))).text()
    assert shown.strip() == made, made
