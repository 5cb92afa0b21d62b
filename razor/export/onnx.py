"""ONNX: one file with codes of 2, 4 and 8 bits, for onnxruntime and whatever else reads that format.

torch writes the graph of the plain model; then codes and scales take the place of every weight that has them, and
inputs that the plan quantizes get their QuantizeLinear and DequantizeLinear (see `razor.export.onnx_graph`). It is
proven in onnxruntime twice: without quantized inputs its logits are those of the packed model up to the order of
sums; with them, it says how far from the student's they are, for a number that lies on the edge between two codes
can fall to either side, and refuses what is further away than that explains.

The file is as small as its codes. It is not fast for that: a runtime without kernels for such codes computes in
fp32, as onnxruntime does on a CPU.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from razor.errors import RazorError
from razor.export.compressed import Compressed
from razor.export.exporter import Exporter, Proof
from razor.export.hf_folder import Skeleton, sixteen_bit
from razor.export.integers import integers, span
from razor.export.loaded import TIGHT, bare_model, gap, kl, logits
from razor.export.onnx_graph import Graph, without_pairs
from razor.export.program import Logits, some_pixels
from razor.models.image_record import image_size_of
from razor.models.sample import sample_inputs
from razor.models.task import Task, auto_class
from razor.quant import Float16, Format, Integer
from razor.quant.sites import sites

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from razor.quant import Plan

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = {False: (21, 10), True: (25, 13)}
"""Operator set and version of the file format: the first with INT4, and the first with INT2."""
LOOSE = 0.5
"""Logits with quantized inputs, of the largest of the student's, at most: numbers on an edge moved a ResNet-18's by
up to 0.2 where inputs had 4 bits. A graph whose scales are wrong has nothing in common with the student."""
LARGEST = 2 * 10**9
"""Bytes of a file of ONNX, at most (it is a protobuf)."""


class ONNX(Exporter):
    """A classifier as one ONNX file with QDQ nodes.

    Args:
        activations: whether inputs are quantized in the file as they are in the student.
        int2: whether weights with ternary codes are stored in two bits, which wants a runtime of operator set 25
            (onnxruntime 1.32 is one); false stores them in four, for operator set 21.

    Raises:
        RazorError: not true or false.
    """

    name: ClassVar[str] = "onnx"
    tags: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    tasks: ClassVar[tuple[Task, ...]] = ("images",)

    def __init__(self, activations: bool = True, int2: bool = True) -> None:
        for key, value in (("activations", activations), ("int2", int2)):
            if not isinstance(value, bool):
                raise RazorError(f"export.onnx.{key}={value} must be true or false.")
        self.activations, self.int2 = activations, int2

    def check(
        self, plan: Plan, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """See `Exporter`."""
        if missing := [name for name in PACKAGES if find_spec(name) is None]:
            raise RazorError(f"export=onnx needs {', '.join(missing)}: pip install {' '.join(missing)}")
        weights = {
            name: place.weights
            for name, place in plan.modules.items()
            if not isinstance(place.weights, Float16) and span(place.weights) is None
        }
        _fits("weights", weights, "group-wise formats or 16 bits")
        inputs = {name: place.activations for name, place in plan.modules.items() if self.activations}
        odd = {name: own for name, own in inputs.items() if own is not None and not _plain(own)}
        _fits("inputs", odd, "integers with scale=absmax, or export.onnx.activations=false")

    def bytes(self, compressed: Compressed) -> int:
        """Codes in a byte each, at most."""
        return compressed.size.total.parameters + 10**7

    def write(self, compressed: Compressed, folder: Path) -> None:
        """See `Exporter`."""
        import onnx

        made = self.graph(compressed).model
        if made.ByteSize() > LARGEST:
            raise RazorError(f"export=onnx holds 2 GB in a file, and this is {made.ByteSize() / 1e9:.1f} GB.")
        onnx.save(made, folder / FILE)

    def graph(self, compressed: Compressed) -> Graph:
        """The model's graph, of codes."""
        made = Graph(_traced(compressed))
        made.model.opset_import[0].version, made.model.ir_version = OPSET[self.int2]
        skeleton = Skeleton.of(compressed.config)
        places = sites(skeleton.model)
        for weight in compressed.weights():
            parameters = dict.fromkeys(f"model.{skeleton.parameter(name)}" for name in weight.names)
            for name, parameter in zip(weight.names, parameters, strict=True):
                if self.activations and isinstance(own := compressed.plan.modules[name].activations, Integer):
                    made.quantize_input(parameter, own, int(places[name].inputs or 0))
                if not isinstance(weight.format, Float16):
                    codes = integers(weight.format, weight.codes).folded()
                    made.quantize_weight(parameter, weight.shape, codes, self.int2)
        return made

    def verify(self, compressed: Compressed, folder: Path) -> Proof:
        """Codes against the packed model bit for bit; logits in onnxruntime; see `Exporter`."""
        import onnx

        stored = onnx.load(folder / FILE)
        onnx.checker.check_model(stored)
        count = self._compare_codes(compressed, stored, folder)
        exact = logits(bare_model(compressed, torch.float32), compressed)
        tight = gap(_ran(without_pairs(stored), compressed), exact)
        if not tight <= TIGHT:
            raise RazorError(
                f"'{folder}' gives other logits in onnxruntime than the packed model without quantized inputs "
                f"(by {tight:.2g} of the largest)."
            )
        facts: dict[str, Any] = {
            "weights": count,
            "codes": "bit for bit",
            "fp32 logits": tight,
            "images": len(exact),
        }
        lines = [
            f"The codes and scales of all {count} weights, read back, give the student's numbers bit for bit.",
            f"In onnxruntime, without quantized inputs, its logits on {len(exact)} images are within {tight:.1g} "
            "of the largest of the packed model's.",
        ]
        if self.activations:
            student = logits(bare_model(compressed, torch.float32, activations=True), compressed)
            own = _ran(stored, compressed)
            if not own.isfinite().all():
                raise RazorError(f"'{folder}' overflows in onnxruntime: export=[packed,dense].")
            apart = kl(student, own)
            if not gap(own, student) <= LOOSE:
                raise RazorError(
                    f"'{folder}' with quantized inputs is another model in onnxruntime than the student (logits "
                    f"{gap(own, student):.2g} of the largest away, {LOOSE:g} at most): "
                    "export.onnx.activations=false, or export=[packed,dense]."
                )
            facts |= {"logits": gap(own, student), "KL(student || onnxruntime)": apart}
            lines.append(
                f"With them, as it is stored, they are within {gap(own, student):.1g} of the largest of the "
                f"student's, {apart:.1g} nats an image (KL): a number on the edge between two codes may "
                "fall to either."
            )
        return Proof(facts, tuple(lines))

    def _compare_codes(self, compressed: Compressed, stored: Any, folder: Path) -> int:
        """Compare the numbers that the file stands for with the packed model's; how many weights have codes."""
        from onnx import numpy_helper

        held = {tensor.name: tensor for tensor in stored.graph.initializer}
        skeleton, count = Skeleton.of(compressed.config), 0
        for weight in compressed.weights():
            name = f"model.{skeleton.parameter(weight.name)}"
            if isinstance(weight.format, Float16):
                found = torch.from_numpy(numpy_helper.to_array(held[name]).copy())
            else:
                codes, scales = (
                    torch.from_numpy(numpy_helper.to_array(held[f"{name}.{part}"]).astype("float32"))
                    for part in ("codes", "scales")
                )
                rows = len(scales)
                times = codes.reshape(rows, -1).shape[1] // scales.reshape(rows, -1).shape[1]
                spread = scales.reshape(rows, -1).repeat_interleave(times, 1)
                found = (codes.reshape(rows, -1) * spread).reshape(weight.shape)
                count += 1
            if not torch.equal(found, weight.decoded()):
                raise RazorError(f"'{folder}' was not written as it was meant: see '{name}'.")
        return count

    def costs(self, compressed: Compressed, folder: Path) -> list[str]:
        """See `Exporter`."""
        import onnx

        size, total = (folder / FILE).stat().st_size, compressed.size.total.parameters
        held = [tensor.data_type for tensor in onnx.load(folder / FILE).graph.initializer]
        kinds = {name: held.count(getattr(onnx.TensorProto, name)) for name in ("INT2", "INT4", "INT8")}
        told = ", ".join(f"{many} in {name}" for name, many in kinds.items() if many)
        lines = [
            f"{size / 1e6:.1f} MB, {8 * size / total:.2f} bits per weight, ratio {2 * total / size:.2f} to 16 "
            f"bits; weights: {told}, the rest in fp32",
            "a runtime without kernels for such codes computes in fp32: smaller, not faster",
        ]
        if any(weight.format.label not in ("2", "4", "8") for weight in compressed.weights()):
            lines.append("a weight has the smallest of these types that holds all of its codes")
        return lines

    def usage(self, compressed: Compressed) -> str:
        """See `Exporter`."""
        shape = ", ".join(map(str, image_size_of(compressed.config)))
        return f"""```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{FILE}")
pixels = np.zeros((1, {shape}), dtype=np.float32)  # normalized as in training
(logits,) = session.run(None, {{"pixel_values": pixels}})
```"""


def _plain(format: Format) -> bool:
    return isinstance(format, Integer) and format.scale == "absmax" and format.group != "tensor"


def _fits(what: str, odd: dict[str, Any], choices: str) -> None:
    if odd:
        name, format = next(iter(odd.items()))
        raise RazorError(
            f"export=onnx has no {what} like those of '{name}', {type(format).__name__}({format.extra_repr()}) "
            f"({len(odd)} such): {choices}. export=[packed,dense] hold every plan."
        )


def plain_model(compressed: Compressed) -> PreTrainedModel:
    """The model of Transformers alone in fp32, with decoded weights."""
    config = compressed.config
    model = auto_class(config).from_config(config, attn_implementation="eager").float().eval()
    state = sixteen_bit(compressed, Skeleton.of(config), torch.float32)
    model.load_state_dict(state, strict=False)
    return model


def _traced(compressed: Compressed) -> Any:
    """The graph of the plain model, its weights under their names with `model.` before them."""
    model = plain_model(compressed)
    pixels, dynamic = some_pixels(compressed.config)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        made = torch.onnx.export(
            Logits(model),
            (pixels,),
            input_names=["pixel_values"],
            output_names=["logits"],
            dynamic_shapes=dynamic,
            opset_version=OPSET[False][0],
            dynamo=True,
            optimize=False,  # which would fold a transposed weight into a new one without its name
            verbose=False,
        )
    assert made is not None
    found = made.model_proto
    for node in found.graph.node:  # where in Python a node comes from, many times as long as the node
        del node.metadata_props[:]
        node.doc_string = ""
    del found.graph.value_info[:]
    return found


def _ran(model: Any, compressed: Compressed) -> Tensor:
    """Logits [images, classes] in onnxruntime, on the images that all exports are compared on."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; what it cannot fuse is no news
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    skeleton = Skeleton.of(compressed.config).model
    pixels = sample_inputs(skeleton, compressed.config)["pixel_values"].float()
    return torch.from_numpy(session.run(None, {"pixel_values": pixels.numpy()})[0])
