"""ONNX: codes as ONNX stores them, the graph around them, and onnxruntime's logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from razor import cli
from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import export
from razor.export.loaded import gap, logits
from razor.export.onnx import FILE, ONNX, _ran
from razor.export.onnx_graph import code_bytes, kind_of
from tests.export.hf_models import exported, packed_by

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


def small(folder: Path, model: str, quant: str, *words: str) -> Compressed:
    config = cli.composed("size", [f"model={model}", f"quant={quant}", *words])
    source = cli.model_source(config)
    return packed_by(folder, source, cli.build(config.quant).plan(source.skeleton()), torch.float32)


@pytest.mark.parametrize(("kind", "lowest", "highest"), [("INT2", -2, 1), ("INT4", -8, 7), ("INT8", -15, 15)])
def test_codes_are_packed_as_onnx_reads_them(kind: str, lowest: int, highest: int) -> None:
    values = (
        torch.arange(lowest, highest + 1).repeat(3)[: 3 * 5 - 4].to(torch.int8)
    )  # no whole number of bytes
    tensor = onnx.helper.make_tensor(
        "codes", getattr(onnx.TensorProto, kind), [len(values)], code_bytes(values, kind), raw=True
    )
    assert onnx.numpy_helper.to_array(tensor).astype(int).tolist() == values.tolist()
    assert kind_of(torch.tensor([lowest, highest]), two=True) == kind
    if kind == "INT2":
        assert kind_of(torch.tensor([lowest, highest]), two=False) == "INT4"


def test_a_vision_transformer_with_ternary_weights(tmp_path: Path) -> None:
    compressed = small(tmp_path, "tiny_vit", "w1p58")
    folder = exported(compressed, ONNX())
    proof = json.loads((folder / "manifest.json").read_text())["proof"]
    assert proof["weights"] == 20 and proof["fp32 logits"] < 1e-5 and proof["logits"] < 1e-4
    made = onnx.load(folder / FILE)
    kinds = [tensor.data_type for tensor in made.graph.initializer]
    assert (kinds.count(onnx.TensorProto.INT2), kinds.count(onnx.TensorProto.INT4)) == (18, 2)
    pairs = [node.op_type for node in made.graph.node].count("QuantizeLinear")
    assert (
        pairs == 1 + 3 * 4 + 1
    )  # pixels; what q, k, v share, and three more in each of three layers; the head
    again = _ran(made, compressed)
    assert gap(again, logits(compressed.model, compressed)) < 1e-4
    assert "onnxruntime.InferenceSession" in (folder / "README.md").read_text()
    for tensor in made.graph.initializer:  # the smallest step of an input, now larger than any input
        if tensor.name.endswith(".low"):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(1e4, dtype=np.float32), tensor.name))
    onnx.save(made, folder / "odd.onnx")
    (folder / FILE).rename(folder / "whole.onnx")
    (folder / "odd.onnx").rename(folder / FILE)
    with pytest.raises(RazorError, match=r"with quantized inputs is another model in onnxruntime"):
        ONNX().verify(compressed, folder)
    made = onnx.load(folder / "whole.onnx")
    codes = next(tensor for tensor in made.graph.initializer if tensor.name.endswith("fc1.weight.codes"))
    codes.raw_data = bytes([codes.raw_data[0] ^ 1]) + codes.raw_data[1:]
    onnx.save(made, folder / FILE)
    with pytest.raises(RazorError, match=r"fc1.weight"):
        ONNX().verify(compressed, folder)


def test_a_convolutional_network_in_groups(tmp_path: Path) -> None:
    words = ("model.group=4", "quant.exclude=[*embedder.embedder.convolution]", "quant.activations.width=4")
    compressed = small(tmp_path, "tiny_resnet", "mixed_2p79", *words)
    folder = exported(compressed, ONNX(int2=False))
    made = onnx.load(folder / FILE)
    assert made.opset_import[0].version == 21
    proof = json.loads((folder / "manifest.json").read_text())["proof"]
    assert proof["weights"] == 9 and proof["fp32 logits"] < 1e-5 and proof["logits"] < 1e-4
    blocks = {
        attribute.i
        for node in made.graph.node
        if node.op_type == "QuantizeLinear"
        for attribute in node.attribute
        if attribute.name == "block_size"
    }
    assert blocks == {4}


def test_what_it_cannot_hold(tmp_path: Path) -> None:
    compressed = small(tmp_path, "tiny_vit", "w4", "quant.activations.scale=mse")
    with pytest.raises(RazorError, match=r"export=onnx has no inputs like those of 'classifier'"):
        export(compressed, {"onnx": ONNX()}, tmp_path)
    with pytest.raises(RazorError, match=r"export.onnx.int2=4"):
        ONNX(int2=4)  # type: ignore[arg-type]
