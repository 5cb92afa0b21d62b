"""An ONNX graph of ordinary numbers, turned into one of codes.

ONNX says quantization in two operators. `DequantizeLinear` makes numbers of stored codes and their scales;
`QuantizeLinear` makes codes of numbers. A weight becomes three things: its codes as an initializer of 2, 4 or 8
bits, its 16-bit scales, and a DequantizeLinear under the weight's old name, so that whoever read the weight still
does. The products are sums of exactly the student's numbers.

The input of a layer gets a pair of both, as runtimes look for it. Its scale cannot be stored: Razor quantizes every
token, or every place of a feature map, by its own largest magnitude. So a few plain operators compute the scale as
the student does, rounded to 16 bits, and hand it to the pair. ONNX's own `DynamicQuantizeLinear` would have one
scale for the whole tensor and a zero point, which is another quantization.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.integers import Integers
from razor.quant import Integer
from razor.quant.grouped import SCALE_RANGE

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""Operators that multiply an input, their first, with a weight."""

PER_BYTE = {"INT2": 4, "INT4": 2, "INT8": 1}
"""Codes in a byte of an initializer, the first in the lowest bits."""


def kind_of(values: Tensor, two: bool) -> str:
    """The smallest of ONNX's types that holds codes; INT2, with which few runtimes are familiar, only if `two`."""
    lowest, highest = int(values.min()), int(values.max())
    if two and lowest >= -2 and highest <= 1:
        return "INT2"
    return "INT4" if lowest >= -8 and highest <= 7 else "INT8"


def code_bytes(values: Tensor, kind: str) -> bytes:
    """Codes in the order of their tensor, packed as ONNX stores them."""
    many = PER_BYTE[kind]
    flat = values.cpu().reshape(-1).numpy().astype(np.int8).view(np.uint8)
    if many == 1:
        return flat.tobytes()
    bits = 8 // many
    flat = np.pad(flat & (2**bits - 1), (0, -len(flat) % many)).reshape(-1, many)
    shifts: Any = np.arange(many, dtype=np.uint8) * bits
    return np.bitwise_or.reduce(flat << shifts, axis=1).astype(np.uint8).tobytes()


@dataclass
class Graph:
    """A model of ONNX that is being rewritten, in place.

    Attributes:
        model: as torch's exporter made it.
        kinds: how many weights became codes of which type.
        pairs: how many inputs got a pair.
    """

    model: Any
    kinds: dict[str, int] = field(default_factory=dict)
    pairs: dict[tuple[str, str], str] = field(default_factory=dict)

    def quantize_weight(self, name: str, shape: tuple[int, ...], own: Integers, two: bool) -> None:
        """Put codes in the place of an initializer.

        Args:
            name: of the initializer.
            shape: of the weight; codes are its rows, all other dimensions flattened.
            own: its codes, without zero points.
            two: whether INT2 may be used.
        """
        from onnx import TensorProto, helper

        (rows, columns), groups = own.values.shape, own.scales.shape[1]
        kind, whole = kind_of(own.values, two), groups == 1
        size = shape if whole else (rows, columns)
        packed = code_bytes(own.values, kind)
        self.model.graph.initializer.append(
            helper.make_tensor(f"{name}.codes", getattr(TensorProto, kind), size, packed, raw=True)
        )
        scales = self._scales(name, own.scales.reshape(rows) if whole else own.scales)
        cast = helper.make_node("Cast", [scales], [f"{name}.scales_fp32"], to=TensorProto.FLOAT)
        flat = name if whole or shape == (rows, columns) else f"{name}.flat"
        span: dict[str, Any] = {"axis": 0} if whole else {"axis": 1, "block_size": columns // groups}
        given = [f"{name}.codes", f"{name}.scales_fp32"]
        nodes = [cast, helper.make_node("DequantizeLinear", given, [flat], **span)]
        if flat != name:
            target = self._constant(f"{name}.shape", np.array(shape, dtype=np.int64))
            nodes.append(helper.make_node("Reshape", [flat, target], [name]))
        self._remove(name)
        self._insert(0, nodes)
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def quantize_input(self, weight: str, format: Integer, width: int) -> None:
        """Put a pair of QuantizeLinear and DequantizeLinear in front of the products with a weight.

        Args:
            weight: name of its initializer.
            format: of the input.
            width: channels of the input of a convolution, or inputs of a linear layer.

        Raises:
            RazorError: nothing multiplies with it where this looks.
        """
        products = list(self._products(weight))
        if not products:
            raise RazorError(
                f"export=onnx does not see where '{weight}' is multiplied with its input: "
                "export.onnx.activations=false leaves inputs as they are."
            )
        for product in products:
            key = (product.input[0], str(format.spec()))
            if key not in self.pairs:
                nodes = self._pair(product.input[0], product.op_type == "Conv", format, width)
                self._insert(self._after(product.input[0]), nodes)
                self.pairs[key] = nodes[-1].output[0]
            product.input[0] = self.pairs[key]

    def _products(self, weight: str) -> Iterator[Any]:
        """Nodes that multiply with a weight, or with its transpose."""
        called = {weight}
        for node in self.model.graph.node:
            if node.op_type in ("Transpose", "Identity") and node.input[0] in called:
                called.add(node.output[0])
            elif node.op_type in PRODUCTS and len(node.input) > 1 and node.input[1] in called:
                yield node

    def _pair(self, x: str, convolved: bool, format: Integer, width: int) -> list[Any]:
        """The nodes that quantize `x` along its channels, the last of which gives the result."""
        from onnx import TensorProto, helper

        stem, nodes = f"{x}.quantized_{len(self.pairs)}", []
        block = width if format.group == "row" else int(format.group)

        def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(kind, inputs, [f"{stem}.{output}"], **attributes))
            return f"{stem}.{output}"

        def constant(name: str, value: Any, kind: Any) -> str:
            return self._constant(f"{stem}.{name}", np.array(value, dtype=kind))

        axis = 1 if convolved else -1
        sizes = add("Abs", [x], "magnitudes")
        if block != width:  # [..., channels, ...] as [..., groups, group, ...]
            parts = [add("Shape", [x], "outer", start=0, end=axis)]
            parts.append(constant("cut", [width // block, block], np.int64))
            if convolved:
                parts.append(add("Shape", [x], "inner", start=2))
            sizes = add("Reshape", [sizes, add("Concat", parts, "parts", axis=0)], "grouped")
        over = constant("axis", [2 if convolved and block != width else axis], np.int64)
        largest = add("ReduceMax", [sizes, over], "largest", keepdims=int(block == width))
        exact = add("Div", [largest, constant("limit", format.highest, np.float32)], "exact")
        low, high = SCALE_RANGE[format.scale_dtype]
        ends = [constant("low", low, np.float32), constant("high", high, np.float32)]
        sixteen = TensorProto.FLOAT16 if format.scale_dtype == "float16" else TensorProto.BFLOAT16
        rounded = add("Cast", [add("Clip", [exact, *ends], "held")], "rounded", to=sixteen)
        scale = add("Cast", [rounded], "scale", to=TensorProto.FLOAT)
        kind = TensorProto.INT4 if format.width <= 4 else TensorProto.INT8
        span = {"axis": axis, "block_size": block}
        codes = add("QuantizeLinear", [x, scale], "codes", output_dtype=kind, **span)
        add("DequantizeLinear", [codes, scale], "numbers", **span)
        return nodes

    def _scales(self, name: str, scales: Tensor) -> str:
        """16-bit scales as an initializer."""
        from onnx import TensorProto, helper

        kind = TensorProto.FLOAT16 if scales.dtype == torch.float16 else TensorProto.BFLOAT16
        raw = scales.contiguous().view(torch.int16).numpy().tobytes()
        self.model.graph.initializer.append(
            helper.make_tensor(f"{name}.scales", kind, tuple(scales.shape), raw, raw=True)
        )
        return f"{name}.scales"

    def _constant(self, name: str, value: Any) -> str:
        from onnx import numpy_helper

        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def _remove(self, name: str) -> None:
        """Take an initializer out."""
        held = self.model.graph.initializer
        for index, tensor in enumerate(held):
            if tensor.name == name:
                del held[index]
                return
        raise RazorError(f"export=onnx: torch's exporter keeps no weight '{name}'.")

    def _after(self, name: str) -> int:
        """Place of the node after the one that makes `name`: before all who read it."""
        made = (i + 1 for i, node in enumerate(self.model.graph.node) if name in node.output)
        return next(made, 0)  # the first: it is what the graph is given

    def _insert(self, place: int, nodes: list[Any]) -> None:
        for offset, node in enumerate(nodes):
            self.model.graph.node.insert(place + offset, node)


def without_pairs(model: Any) -> Any:
    """A copy of a model in which inputs are multiplied as they are."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    given = {node.output[0]: node.input[0] for node in bare.graph.node if node.op_type == "QuantizeLinear"}
    taken = {
        node.output[0]: given[node.input[0]]
        for node in bare.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in given
    }
    for node in bare.graph.node:
        if node.op_type in PRODUCTS and node.input[0] in taken:
            node.input[0] = taken[node.input[0]]
    return bare
