"""`razor size`: the figures and the table of a model under a recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from razor import cli
from razor.evals.size_table import size_summary, size_table, sizes_markdown

ROOT = Path(__file__).resolve().parent.parent.parent
PUBLISHED = ["qwen3_0p6b", "qwen3_1p7b", "mobilellm_350m"]
FOUR_WIDTHS = {"w4": 1.0, "mixed_2p79": 0.5, "mixed_1p88": 0.125, "w1p58": 0.0}  # part of the rows in int4
MODELS = ["tiny_llama", "tiny_qwen3", "smollm2_135m", "mobilellm_350m", "qwen3_0p6b", "qwen3_1p7b"]
QUANTS = ["w16", "w4", "mixed_2p79", "mixed_1p88", "w1p58"]


def parts(model: str, quant: str) -> tuple[Any, Any]:
    config = cli.composed("size", [f"model={model}", f"quant={quant}"])
    return cli.model_source(config), cli.build(config.quant)


@pytest.mark.parametrize("model", MODELS)
def test_fewer_bits_make_a_smaller_model(model: str) -> None:
    found = [size_summary(*parts(model, quant)) for quant in QUANTS]
    assert len({summary["parameters"] for summary in found}) == 1
    bits = [summary["bits_per_weight"] for summary in found]
    sizes = [summary["bytes_disk"] for summary in found]
    assert bits == sorted(bits, reverse=True) and sizes == sorted(sizes, reverse=True)
    assert bits[0] == 16 and found[0]["ratio_paper"] == found[0]["ratio_disk"] == 1
    assert sizes[0] == 2 * found[0]["parameters"]


@pytest.mark.parametrize(
    ("model", "millions"), [("smollm2_135m", 134.5), ("mobilellm_350m", 345.3), ("qwen3_0p6b", 596.0)]
)
def test_parameters_are_those_that_were_published(model: str, millions: float) -> None:
    assert size_summary(*parts(model, "w4"))["parameters"] / 1e6 == pytest.approx(millions, abs=0.1)


def test_parameters_are_those_of_the_loaded_model() -> None:
    source, recipe = parts("tiny_qwen3", "w4")
    loaded = sum(parameter.numel() for parameter in source.load(torch.bfloat16).parameters())
    assert size_summary(source, recipe)["parameters"] == loaded


def test_table_adds_up() -> None:
    text = size_table(*parts("qwen3_0p6b", "mixed_2p79"))
    assert text.splitlines()[0] == "qwen3_0p6b, mixed_2p79 (W2.79-A8-KV8): 2.79 code bits in the decoder"
    counts = {
        line[:14].strip(): int(line[14:].split()[0].replace(",", ""))
        for line in text.splitlines()
        if line.startswith(("linear", "embedding", "norms", "all"))
    }
    assert sum(counts.values()) == 2 * counts["all"] and len(counts) == 4
    assert "accounting  5.05" in text


def by_hand(vocab: int, hidden: int, wide: int, heads: int, kv_heads: int, head_dim: int, layers: int) -> Any:
    """(rows, columns) of all matrices but the tied embedding, and the number of norm weights, by the papers."""
    query, kv = heads * head_dim, kv_heads * head_dim
    layer = [(query, hidden), (kv, hidden), (kv, hidden), (hidden, query)]
    layer += [(wide, hidden), (wide, hidden), (hidden, wide)]
    return layers * layer, (vocab, hidden), layers * 2 * hidden + hidden


@pytest.mark.parametrize(("quant", "fraction"), FOUR_WIDTHS.items())
@pytest.mark.parametrize(
    ("model", "shape", "group", "head_norms"),
    [
        ("qwen3_0p6b", (151_936, 1024, 3072, 16, 8, 128, 28), 256, 28 * 2 * 128),
        ("qwen3_1p7b", (151_936, 2048, 6144, 16, 8, 128, 28), 256, 28 * 2 * 128),
        ("mobilellm_350m", (32_000, 960, 2560, 15, 5, 64, 32), 64, 0),
    ],
)
def test_sizes_against_arithmetic_by_hand(
    model: str, shape: tuple[int, ...], group: int, head_norms: int, quant: str, fraction: float
) -> None:
    matrices, (vocab, hidden), norms = by_hand(*shape)
    norms += head_norms
    parameters = vocab * hidden + norms + sum(rows * columns for rows, columns in matrices)
    bits = vocab * hidden * (4 + 16 / group) + 16 * norms
    stored = vocab * (hidden // 2 + 2 * hidden // group) + 2 * norms
    for rows, columns in matrices:
        high = math.ceil(rows * fraction)
        bits += (4 * high + 1.58 * (rows - high) + 16 / group * rows) * columns
        stored += high * columns // 2 + (rows - high) * math.ceil(columns / 5) + 2 * rows * columns // group
    found = size_summary(*parts(model, quant))
    assert found["parameters"] == parameters
    assert found["bytes_disk"] == stored
    assert found["ratio_paper"] == round(16 * parameters / bits, 4)
    assert found["bits_per_weight"] == round(bits / parameters, 4)


def test_the_document_shows_what_the_code_says() -> None:
    made = sizes_markdown(parts(model, quant) for model in PUBLISHED for quant in FOUR_WIDTHS)
    text = (ROOT / "docs" / "plans.md").read_text(encoding="utf-8")
    shown = text.split("<!-- sizes: begin -->")[1].split("<!-- sizes: end -->")[0].strip()
    assert shown == made, made
    ratios = [line.split("|")[5].strip() for line in made.splitlines()[2:6]]
    assert ratios == ["3.94", "5.05", "6.40", "7.03"]
