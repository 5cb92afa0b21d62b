"""Reading a GGUF back: every tensor's codes and scales, compared with ours bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from razor.errors import RazorError
from razor.export.gguf.blocks import Q2_0, BlockType
from razor.export.gguf.holding import held
from razor.export.gguf.writing import ROWS_BYTES, Entry


@dataclass(frozen=True)
class Stored:
    """A tensor as the file has it: ggml's number of its type, its shape, and its raw bytes [rows, bytes]."""

    type_number: int
    shape: tuple[int, ...]
    raw: NDArray[np.uint8]


def stored_tensors(path: Path) -> dict[str, Stored]:
    """The tensors of a GGUF file, mapped into memory, by name.

    Raises:
        RazorError: it is no GGUF, or ends too early.
    """
    from gguf import GGML_QUANT_SIZES, GGUFReader

    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()} | {
        Q2_0.number: (Q2_0.size, Q2_0.bytes)
    }

    class Reader(GGUFReader):
        """Of types that the package does not know, too."""

        def _build_tensors(self, start_offs: int, fields: list[Any]) -> None:
            self.stored: dict[str, Stored] = {}
            for field in fields:
                _, name, _, dims, kind, offset = field.parts
                shape = tuple(int(n) for n in reversed(dims))
                block, width = sizes[int(kind[0])]
                count = int(np.prod(shape)) // block * width
                begin = start_offs + int(offset[0])
                raw = self.data[begin : begin + count]
                stored = Stored(int(kind[0]), shape, raw.reshape(shape[0] if len(shape) > 1 else 1, -1))
                self.stored[bytes(name).decode()] = stored

    try:
        return Reader(path).stored
    except (ValueError, KeyError, IndexError, OverflowError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RazorError(f"'{path}' cannot be read as GGUF ({type(error).__name__}: {reason}).") from error


def compare(path: Path, entries: Sequence[Entry]) -> None:
    """Compare a file with the compressed model.

    Codes and scales have to be ours bit for bit, and the numbers that the gguf package makes of them those that our
    formats decode to in fp32.

    Raises:
        RazorError: names the first tensor that differs.
    """
    found = stored_tensors(path)
    if set(found) != {entry.name for entry in entries}:
        odd = sorted(set(found) ^ {entry.name for entry in entries})[0]
        raise RazorError(f"'{path}' has other tensors than the model, see '{odd}'.")
    for entry in entries:
        tensor = found[entry.name]
        if tensor.shape != entry.shape or tensor.type_number != entry.type_number:
            raise _differs(path, entry, "shape or type")
        if isinstance(entry.type, BlockType):
            _compare_codes(path, entry, tensor.raw)
        else:
            _compare_numbers(path, entry, tensor.raw)


def _compare_codes(path: Path, entry: Entry, raw: NDArray[np.uint8]) -> None:
    assert isinstance(entry.type, BlockType) and entry.weight is not None
    kind, weight = entry.type, entry.weight
    codes = weight.codes
    ours, decoded = held(codes, weight.format, kind, weight.name), weight.format.decode(codes).numpy()
    order = np.arange(len(raw)) if entry.order is None else entry.order.numpy()
    step = max(1, ROWS_BYTES // raw.shape[1])
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        blocks = np.array(raw[start : start + step]).reshape(-1, kind.bytes)
        for expected, read in zip(ours.rows(rows), kind.unpack(blocks), strict=True):
            if not np.array_equal(
                expected.view(np.uint8), read.view(np.uint8).reshape(expected.view(np.uint8).shape)
            ):
                raise _differs(path, entry, "codes or scales")
        if not np.array_equal(numbers_of(kind, blocks).reshape(len(rows), -1), decoded[rows]):
            raise _differs(path, entry, "numbers")


def numbers_of(kind: BlockType, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What blocks [blocks, bytes] stand for, by the gguf package, or by llama.cpp where that does not know them."""
    if kind.number == Q2_0.number:
        from razor.models.llama_library import decode_row

        return decode_row(kind.decoder, blocks, len(blocks) * kind.size)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = 16 if len(blocks) % 16 == 0 else 1  # it takes sixteen rows at a time, and is slow with short ones
    return np.asarray(dequantize(blocks.reshape(rows, -1), GGMLQuantizationType(kind.number))).reshape(-1)


def _compare_numbers(path: Path, entry: Entry, raw: NDArray[np.uint8]) -> None:
    assert isinstance(entry.type, str)
    dtype = getattr(torch, entry.type)
    read = torch.from_numpy(np.array(raw)).view(-1).view(dtype).reshape(entry.shape).float()
    values = entry.weight.decoded() if entry.weight is not None else entry.values()  # type: ignore[misc]
    if not torch.equal(read, values if entry.order is None else values[entry.order]):
        raise _differs(path, entry, "numbers")


def _differs(path: Path, entry: Entry, what: str) -> RazorError:
    return RazorError(
        f"'{path}': {what} of '{entry.name}' ({entry.type_name}) are not those of '{entry.source}'."
    )
