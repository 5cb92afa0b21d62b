"""The file itself: facts, vocabulary, tensors, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from razor.export.gguf.architectures import Architecture
from razor.export.gguf.blocks import BlockType
from razor.export.gguf.holding import PLAIN, as_written, held
from razor.export.gguf.vocabulary import Vocabulary, vocabulary

if TYPE_CHECKING:
    from razor.export.compressed import Compressed, Weight

ROWS_BYTES = 1 << 25
"""Bytes of codes that are packed at once."""


@dataclass(frozen=True)
class Entry:
    """One tensor of the file.

    Attributes:
        name: in GGUF.
        source: name of the parameter in Transformers; empty for one that is computed.
        shape: of the tensor.
        type: a block type, or a key of PLAIN.
        weight: the compressed weight it holds; None: a norm, a bias, or a computed one.
        values: gives its numbers, in fp32, if there is no weight.
        order: see `Architecture.order`.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    type: BlockType | str
    weight: Weight | None = None
    values: Callable[[], Tensor] | None = None
    order: Tensor | None = None

    @property
    def type_name(self) -> str:
        """GGUF's name of its type."""
        return self.type.name if isinstance(self.type, BlockType) else PLAIN[self.type][0]

    @property
    def type_number(self) -> int:
        """Number of its type, as ggml has it."""
        return self.type.number if isinstance(self.type, BlockType) else PLAIN[self.type][1]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        count = int(np.prod(self.shape))
        if isinstance(self.type, BlockType):
            return count // self.type.size * self.type.bytes
        return count * PLAIN[self.type][3]


def entries(
    compressed: Compressed, architecture: Architecture, types: Sequence[BlockType], f32: bool
) -> list[Entry]:
    """Every tensor of the file, in its order; weights are unpacked only when they are written.

    Raises:
        RazorError: a weight without a name in GGUF.
    """
    found = []
    for weight in compressed.weights():
        source = f"{weight.name}.weight"
        kind = as_written(weight.format, f32, weight.shape[1], types)
        order = architecture.order(weight.name)
        found.append(Entry(architecture.tensor(source), source, weight.shape, kind, weight, order=order))
    for source, tensor in compressed.others():
        name = architecture.tensor(source)
        added = architecture.added if name.endswith("norm.weight") else 0.0
        found.append(
            Entry(
                name,
                source,
                tuple(tensor.shape),
                "float32",
                values=partial(_widened, tensor, added),
                order=architecture.order(source),
            )
        )
    for name, tensor in architecture.added_tensors().items():
        found.append(Entry(name, "", tuple(tensor.shape), "float32", values=partial(_widened, tensor)))
    return found


def _widened(tensor: Tensor, added: float = 0.0) -> Tensor:
    return tensor.detach().float() + added


def numbers(entry: Entry) -> Iterator[np.ndarray[Any, Any]]:
    """What is written for a tensor, in parts: uint8 blocks, or plain numbers."""
    if isinstance(entry.type, BlockType):
        assert entry.weight is not None
        codes = entry.weight.codes
        ours = held(codes, entry.weight.format, entry.type, entry.weight.name)
        order = np.arange(len(ours.values)) if entry.order is None else entry.order.numpy()
        step = max(1, ROWS_BYTES // max(1, ours.values.shape[1]))
        for start in range(0, len(order), step):
            yield entry.type.pack(*ours.rows(order[start : start + step]))
        return
    values = entry.weight.decoded() if entry.weight is not None else entry.values()  # type: ignore[misc]
    values = values if entry.order is None else values[entry.order]
    exact = values.to(getattr(torch, entry.type))
    yield (exact.view(torch.int16) if entry.type == "bfloat16" else exact).numpy()


def write(path: Path, compressed: Compressed, architecture: Architecture, tensors: Sequence[Entry]) -> None:
    """Write a GGUF file.

    Args:
        path: the file.
        compressed: what is written.
        architecture: of the model.
        tensors: from `entries`.

    Raises:
        RazorError: a scale or a tokenizer that GGUF does not hold.
    """
    from gguf import GGUFWriter

    assert compressed.tokenizer is not None  # GGUF holds models of text alone
    own = vocabulary(compressed.tokenizer, compressed.config.vocab_size)
    writer = GGUFWriter(path, architecture.name)
    _general(writer, compressed, tensors)
    _facts(writer, architecture)
    _vocabulary(writer, own, compressed)
    write_tensors(writer, tensors)


def write_bare(path: Path, architecture: Architecture, tensors: Sequence[Entry]) -> None:
    """Write a GGUF file that holds no vocabulary: it takes tokens only."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture.name)
    _facts(writer, architecture)
    writer.add_tokenizer_model("no_vocab")
    write_tensors(writer, tensors)


def write_tensors(writer: Any, tensors: Sequence[Entry]) -> None:
    """Write everything that a writer has been told, and then the tensors, one after another."""
    for entry in tensors:
        # the writer asks for nothing but an integer where it is given shapes in numbers and not in bytes
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.nbytes, entry.type_number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    out = writer.fout[0]
    for entry in tensors:
        writer.write_padding(out, out.tell())
        for part in numbers(entry):
            np.ascontiguousarray(part).tofile(out)
        writer.write_padding(out, out.tell())
    writer.close()


def file_type(tensors: Sequence[Entry]) -> int:
    """llama.cpp's number for what most of the numbers are in."""
    share: dict[int, int] = {}
    for entry in tensors:
        if entry.weight is not None:
            kind = entry.type
            number = kind.file_type if isinstance(kind, BlockType) else PLAIN[kind][2]
            share[number] = share.get(number, 0) + int(np.prod(entry.shape))
    return max(share, key=lambda number: share[number])


def file_bits(tensors: Sequence[Entry]) -> float:
    """Bits per weight of all tensors together."""
    return 8 * sum(entry.nbytes for entry in tensors) / sum(int(np.prod(entry.shape)) for entry in tensors)


def _general(writer: Any, compressed: Compressed, tensors: Sequence[Entry]) -> None:
    about, size = compressed.about, compressed.size.total
    writer.add_type("model")
    writer.add_name(compressed.name)
    parameters = size.parameters / 1e6
    writer.add_size_label(f"{parameters:.0f}M" if parameters < 1000 else f"{parameters / 1000:.1f}B")
    if "licence" in about:
        writer.add_license(about["licence"])
    if "base" in about:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, about["base"].rpartition("/")[2])
        if "/" in about["base"]:
            writer.add_base_model_organization(0, about["base"].partition("/")[0])
    writer.add_quantized_by(f"Razor ({compressed.how}; codes written as they are)")
    writer.add_file_type(file_type(tensors))
    writer.add_quantization_version(2)
    for key, value in about.items():
        writer.add_string(f"razor.{key}", str(value))
    writer.add_float32("razor.bits_per_weight", size.bits_per_weight)
    writer.add_float32("razor.code_bits", compressed.size.code_bits)
    writer.add_float32("razor.file_bits_per_weight", file_bits(tensors))


def _facts(writer: Any, architecture: Architecture) -> None:
    for key, value in architecture.facts().items():
        kind = {bool: "bool", int: "uint32", float: "float32", str: "string"}[type(value)]
        getattr(writer, f"add_{kind}")(f"{architecture.name}.{key}", value)


def _vocabulary(writer: Any, own: Vocabulary, compressed: Compressed) -> None:
    writer.add_tokenizer_model(own.model)
    writer.add_tokenizer_pre(own.pre)
    writer.add_token_list(list(own.tokens))
    writer.add_token_types(list(own.kinds))
    if own.scores is not None:
        writer.add_token_scores(list(own.scores))
    if own.merges is not None:
        writer.add_token_merges(list(own.merges))
    for key, index in own.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{key}", index)
    for key, flag in own.flags.items():
        writer.add_bool(f"tokenizer.ggml.{key}", flag)
    template = getattr(compressed.tokenizer, "chat_template", None)
    if isinstance(template, dict):  # of several, by name
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
