"""`razor size`: the figures and the table of a model under a recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from razor import cli
from razor.evals.size_table import size_summary, size_table

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
