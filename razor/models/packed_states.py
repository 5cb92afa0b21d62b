"""Keys or values of one layer as codes, growing token by token.

A token's states of one head are one row of the format's matrix, with scales of their own. So tokens can be
added, dropped and reordered without touching the codes of any other token: nothing is ever encoded twice.

Codes lie in buffers with some room at the end. Appending a token writes one row a head; when the room is used
up the buffers grow by an eighth, so that over a whole text each byte is copied a few times at most, and little
is reserved that is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from razor.quant import Format

LEAST_ROOM = 32
"""Tokens that fit after the buffers have grown, at least."""


class PackedStates:
    """States [B, heads, T, head_dim] in the packed form of `format`.

    Args:
        format: its scales must belong to single rows (see `Format.check_tokens`).
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self.width = 0
        self._buffers: dict[str, Tensor] = {}  # [B, heads, capacity, ...]
        self._first = self._last = 0  # the tokens held are [first, last) of the buffers

    def __len__(self) -> int:
        """Tokens held."""
        return self._last - self._first

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales of the tokens held."""
        return sum(self._held(buffer).nbytes for buffer in self._buffers.values())

    @property
    def reserved(self) -> int:
        """Bytes of the buffers, room included."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def append(self, states: Tensor) -> None:
        """Encode and store states [B, heads, new, head_dim]."""
        batch, heads, new, self.width = states.shape
        if new == 0:
            return
        rows = states.detach().reshape(-1, self.width)
        packed = {
            name: tensor.view(batch, heads, new, *tensor.shape[1:])
            for name, tensor in self.format.pack(self.format.encode(rows)).items()
        }
        if not self._buffers:
            self._move({name: tensor[:, :, :0] for name, tensor in packed.items()}, new)
        elif self._last + new > self._capacity:
            needed = len(self) + new
            self._move(self._buffers, needed + max(needed // 8, LEAST_ROOM))
        for name, tensor in packed.items():
            self._buffers[name][:, :, self._last : self._last + new] = tensor
        self._last += new

    def decode(self, dtype: torch.dtype, last: int | None = None) -> Tensor:
        """All states held, or those of the last few tokens, [B, heads, T, head_dim]."""
        first = self._first if last is None else max(self._last - last, self._first)
        held = {name: buffer[:, :, first : self._last] for name, buffer in self._buffers.items()}
        batch, heads, tokens = next(iter(held.values())).shape[:3]
        shape = (batch * heads * tokens, self.width)
        codes = self.format.unpack({name: part.flatten(0, 2) for name, part in held.items()}, shape)
        return self.format.decode(codes).to(dtype).view(batch, heads, tokens, self.width)

    def keep_last(self, tokens: int) -> None:
        """Forget all but the last tokens; room that a long text has left behind is given back."""
        self._first = max(self._first, self._last - tokens)
        if self._capacity > 2 * (len(self) + LEAST_ROOM):
            self._move(self._buffers, len(self) + LEAST_ROOM)

    def drop_last(self, tokens: int) -> None:
        """Forget the last tokens."""
        self._last = max(self._first, self._last - tokens)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order: indices (repeats allowed) or a mask."""
        with torch.inference_mode(False):
            self._buffers = {n: buffer[rows.to(buffer.device)] for n, buffer in self._buffers.items()}

    def repeat(self, times: int) -> None:
        """Repeat every row of the batch, copies side by side."""
        batch = next((len(buffer) for buffer in self._buffers.values()), 0)
        self.select(torch.arange(batch).repeat_interleave(times))

    @property
    def _capacity(self) -> int:
        return next((buffer.shape[2] for buffer in self._buffers.values()), 0)

    def _held(self, buffer: Tensor) -> Tensor:
        return buffer[:, :, self._first : self._last]

    def _move(self, old: dict[str, Tensor], capacity: int) -> None:
        """Move the tokens held to buffers for `capacity` tokens."""
        tokens = len(self)
        # not inference tensors, which could not be written to outside of inference mode later
        with torch.inference_mode(False):
            for name, buffer in old.items():
                batch, heads, _, *rest = buffer.shape
                new = torch.empty(batch, heads, capacity, *rest, dtype=buffer.dtype, device=buffer.device)
                new[:, :, :tokens] = self._held(buffer)
                self._buffers[name] = new
        self._first, self._last = 0, tokens
