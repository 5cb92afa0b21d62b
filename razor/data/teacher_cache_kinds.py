"""What is kept of the teacher's distribution at a token, and how few bytes that takes.

*sampled*: n tokens drawn from the distribution, kept as different tokens and counts. Counts over n are an
unbiased estimate of it (random-sampling KD, Anshumann et al., 2503.16870, with the teacher itself as proposal at
temperature 1), so the gradient of forward KL is right on average. Text is mostly certain: of 50 draws some ten
are different.

*top-k*: the k likeliest tokens and the mass of all others. The same at every run, but the tail's shape is lost,
which is a bias.

Either way the exact entropy and the label's probability stand beside it, 8 bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from razor.distill import Targets
from razor.distill.logits import entropy
from razor.distill.topk import coarse
from razor.errors import RazorError, did_you_mean
from razor.storage import digest

Arrays = dict[str, NDArray[Any]]

LEAST = -1e4
"""Log-probability of a tail that rounds to nothing: times its probability, 0, it has to stay a number."""


class Kept(ABC):
    """A way to keep distributions; its constructor's arguments are its description."""

    kind: ClassVar[Literal["sampled", "topk"]]
    by_entry: ClassVar[tuple[str, ...]] = ()
    """Arrays with a varying number of rows per token; the others have one."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Everything that shapes what is kept."""

    @abstractmethod
    def chance(self, row: int, tokens: int) -> Tensor | None:
        """The random numbers for the tokens of row `row`: a function of the seed and the row alone."""

    @abstractmethod
    def targets(self, logp: Tensor, labels: Tensor, chance: Tensor | None) -> Targets:
        """Of log-probabilities [n, vocabulary] of some tokens, fp32.

        Args:
            logp: the teacher's.
            labels: [n] the tokens that come next.
            chance: of these tokens.
        """

    @abstractmethod
    def pack(self, targets: Targets, vocabulary: int) -> Arrays:
        """Few bytes: arrays by name."""

    @abstractmethod
    def unpack(self, arrays: Arrays) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inverse: ids, values and tail of `Targets`."""

    @abstractmethod
    def most_bytes(self, vocabulary: int) -> int:
        """Upper bound of the bytes of a token."""

    def check(self, vocabulary: int) -> None:  # noqa: B027 - only some kinds have a limit
        """Raise RazorError if it does not fit a vocabulary."""


class Sampled(Kept):
    """Tokens drawn from the teacher.

    Args:
        draws: per token of text.
        seed: of the draws.
    """

    kind = "sampled"
    by_entry = ("ids", "counts")

    def __init__(self, draws: int = 50, seed: int = 0) -> None:
        if not 1 <= draws <= 65535:
            raise RazorError(f"draws={draws} must be from 1 to 65535.")
        self.draws, self.seed = draws, seed

    def describe(self) -> dict[str, Any]:  # noqa: D102 - see Kept
        return {"kind": self.kind, "draws": self.draws, "seed": self.seed}

    def chance(self, row: int, tokens: int) -> Tensor:
        """[tokens, draws] in increasing order, so that equal tokens come together."""
        generator = torch.Generator().manual_seed(int(digest(["draws", self.seed, row]), 16) % 2**63)
        return torch.rand(tokens, self.draws, generator=generator, dtype=torch.float64).sort(-1).values

    def targets(self, logp: Tensor, labels: Tensor, chance: Tensor | None) -> Targets:
        """By inverting the cumulative distribution, summed up in double precision, which MPS lacks."""
        assert chance is not None
        exact = logp.cpu() if logp.device.type == "mps" else logp
        upto = exact.exp().cumsum(-1, dtype=torch.float64)
        drawn = torch.searchsorted(upto, chance.to(upto.device) * upto[:, -1:], right=True)
        drawn = drawn.clamp_(max=logp.shape[-1] - 1)
        new = torch.ones_like(drawn)
        new[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
        place = new.cumsum(1) - 1
        width = int(place[:, -1].max()) + 1
        ids = drawn.new_zeros(len(drawn), width).scatter_(1, place, drawn)
        counts = drawn.new_zeros(len(drawn), width).scatter_add_(1, place, torch.ones_like(drawn))
        return _targets(self.kind, ids, counts.float() / self.draws, None, logp, labels)

    def pack(self, targets: Targets, vocabulary: int) -> Arrays:  # noqa: D102
        counts = (targets.values * self.draws).round().to(torch.int64).numpy()
        used, kind = counts > 0, np.uint8 if self.draws < 256 else np.uint16
        return {
            "entries": used.sum(1).astype(kind),
            "ids": pack_ids(targets.ids.numpy()[used], vocabulary),
            "counts": counts[used].astype(kind),
        }

    def unpack(self, arrays: Arrays) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: D102
        entries = arrays["entries"].astype(np.int64)
        used = np.arange(entries.max(initial=0))[None] < entries[:, None]
        ids, values = np.zeros(used.shape, np.int64), np.zeros(used.shape, np.float32)
        ids[used], values[used] = unpack_ids(arrays["ids"]), arrays["counts"] / np.float32(self.draws)
        return torch.from_numpy(ids), torch.from_numpy(values), None

    def most_bytes(self, vocabulary: int) -> int:  # noqa: D102
        size = 1 if self.draws < 256 else 2
        return 8 + size + min(self.draws, vocabulary) * (id_bytes(vocabulary) + size)


class TopK(Kept):
    """The likeliest tokens.

    Args:
        k: how many; with the whole vocabulary nothing is lost, and there is no tail.
        values: "float16" or "float32": how log-probabilities are stored. Half precision is off by up to a
            thousandth, and is made to add up to 1 again when it is read.
    """

    kind = "topk"

    def __init__(self, k: int = 64, values: str = "float16") -> None:
        if k < 1:
            raise RazorError(f"k={k} must be at least 1.")
        if values not in ("float16", "float32"):
            raise RazorError(f"values='{values}'. Choices: float16, float32.")
        self.k, self.values = k, values

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"kind": self.kind, "k": self.k, "values": self.values}

    def check(self, vocabulary: int) -> None:  # noqa: D102
        if self.k > vocabulary:
            raise RazorError(f"k={self.k} is more than the {vocabulary} tokens of the vocabulary.")

    def chance(self, row: int, tokens: int) -> None:
        """None is needed."""

    def targets(self, logp: Tensor, labels: Tensor, chance: Tensor | None) -> Targets:  # noqa: D102
        ids = logp.topk(self.k, -1).indices
        kept = coarse(logp, ids)
        tail = kept[:, self.k].clamp(min=LEAST) if self.k < logp.shape[-1] else None
        return _targets(self.kind, ids, kept[:, : self.k], tail, logp, labels)

    def pack(self, targets: Targets, vocabulary: int) -> Arrays:  # noqa: D102
        values = targets.values.numpy()
        arrays = {"ids": pack_ids(targets.ids.numpy(), vocabulary), "values": values.astype(self.values)}
        return arrays if targets.tail is None else arrays | {"tail": targets.tail.numpy()}

    def unpack(self, arrays: Arrays) -> tuple[Tensor, Tensor, Tensor | None]:  # noqa: D102
        ids = torch.from_numpy(unpack_ids(arrays["ids"]))
        values = torch.from_numpy(arrays["values"].astype(np.float32))
        tail = torch.from_numpy(arrays["tail"]) if "tail" in arrays else None
        if self.values == "float16":
            whole = values if tail is None else torch.cat([values, tail.unsqueeze(1)], 1)
            off = whole.logsumexp(1)
            values, tail = values - off.unsqueeze(1), None if tail is None else tail - off
        return ids, values, tail

    def most_bytes(self, vocabulary: int) -> int:  # noqa: D102
        return 12 + self.k * (id_bytes(vocabulary) + np.dtype(self.values).itemsize)


def kept_of(kind: str, draws: int = 50, k: int = 64, values: str = "float16", seed: int = 0) -> Kept:
    """The kind of a name; arguments of the other one are not looked at.

    Raises:
        RazorError: an unknown kind, or a number out of its range.
    """
    if kind == "sampled":
        return Sampled(draws, seed)
    if kind == "topk":
        return TopK(k, values)
    raise RazorError(f"A teacher is not cached as kind={kind}.{did_you_mean(str(kind), ('sampled', 'topk'))}")


def id_bytes(vocabulary: int) -> int:
    """Bytes that a token takes."""
    return 2 if vocabulary <= 2**16 else 3 if vocabulary <= 2**24 else 4


def pack_ids(ids: NDArray[np.int64], vocabulary: int) -> NDArray[Any]:
    """int64 [...] -> uint16 or uint32 [...], or three bytes [..., 3], the lowest first."""
    size = id_bytes(vocabulary)
    if size == 2:
        return ids.astype(np.uint16)
    wide = np.ascontiguousarray(ids.astype("<u4"))
    return wide if size == 4 else np.ascontiguousarray(wide[..., None].view(np.uint8)[..., :3])


def unpack_ids(packed: NDArray[Any]) -> NDArray[np.int64]:
    """Inverse of `pack_ids`."""
    if packed.dtype != np.uint8:
        return packed.astype(np.int64)
    wide = np.zeros((*packed.shape[:-1], 4), np.uint8)
    wide[..., :3] = packed
    return wide.view("<u4")[..., 0].astype(np.int64)


def _targets(
    kind: Literal["sampled", "topk"],
    ids: Tensor,
    values: Tensor,
    tail: Tensor | None,
    logp: Tensor,
    labels: Tensor,
) -> Targets:
    label = logp.gather(-1, labels.unsqueeze(-1)).squeeze(-1).exp()
    made = Targets(kind, ids, values, tail, entropy(logp), label)
    return made.to("cpu")
