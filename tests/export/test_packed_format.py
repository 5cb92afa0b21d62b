"""docs/packed-format.md read by a stranger: numpy and json alone decode every weight."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from razor.export.packed import load_packed, save_packed
from razor.quant import CodedWeight


def codes_of(packed: np.ndarray, spec: dict[str, Any], columns: int) -> np.ndarray:
    if spec["kind"] == "Ternary":
        digits = packed[..., None] // 3 ** np.arange(5) % 3
        return digits.reshape(len(packed), -1)[:, :columns].astype(np.int64) - 1
    width = spec["width"]
    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, width)
    codes = (bits << np.arange(width)).sum(-1)[:, :columns].astype(np.int64)
    return codes if spec["kind"] == "Affine" else codes - 2 ** (width - 1)


def decoded(tensors: dict[str, np.ndarray], prefix: str, spec: dict[str, Any], columns: int) -> np.ndarray:
    if spec["kind"] == "RowMix":
        names = ("high", "low")
        parts = {n: decoded(tensors, f"{prefix}{n}_", spec[n], columns) for n in names}
        rows = sum(len(part) for part in parts.values())
        p = spec["fraction"]
        high = np.array([math.ceil((i + 1) * p) > math.ceil(i * p) for i in range(rows)])
        whole = np.empty((rows, columns), np.float32)
        whole[high], whole[~high] = parts["high"], parts["low"]
        return whole
    codes = codes_of(tensors[f"{prefix}codes"], spec, columns)
    scales = tensors[f"{prefix}scales"].astype(np.float32)
    if spec["kind"] == "Affine":
        zeros = codes_of(tensors[f"{prefix}zeros"], spec, scales.shape[1])
        codes = codes - zeros.repeat(columns // scales.shape[1], 1)
    return codes.astype(np.float32) * scales.repeat(columns // scales.shape[1], 1)


@pytest.mark.parametrize("quant", ["w4", "w3", "mixed_1p88", "w1p58"])
def test_numpy_alone_decodes_it(tiny_student: Callable[..., Any], tmp_path: Path, quant: str) -> None:
    student, plan, tokenizer, _ = tiny_student(quant, "tiny_llama")
    save_packed(student, plan, tokenizer, torch.bfloat16, tmp_path)
    specs = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["plan"]["modules"]
    model, _ = load_packed(tmp_path)
    own = {path.removesuffix(".coded"): m for path, m in model.named_modules() if isinstance(m, CodedWeight)}
    assert own.keys() == specs.keys()
    tensors = tensors_of(tmp_path / "model.safetensors")
    for name, weight in own.items():
        found = decoded(tensors, f"{name}.coded.", specs[name]["weights"], weight.shape[1])
        assert np.array_equal(found, weight.format.decode(weight.unpacked()).numpy()), name


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "pt") as tensors:  # numpy has no bf16, in which norms are
        return {name: tensors.get_tensor(name).numpy() for name in tensors.keys() if ".coded." in name}  # noqa: SIM118
