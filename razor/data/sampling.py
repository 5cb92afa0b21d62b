"""Let a model write many texts at once, quickly, also on a CPU.

Every row here takes exactly one token per step, sampled or given. So rows that begin with equally
many tokens are always at the same position: no padding, no attention mask, no position arithmetic.
Where prompts differ in length the shorter ones are padded in front, and stay apart by that much.
What a row does with its step is its *script*: a list of turns, each either `Free`
(sample until a stop token or a limit) or `Fixed` (these tokens come next, whatever the model would
have said). A chat is Free, Fixed, Free: the user's turn, the template's text in between, the
answer.

**Speed.** A step costs about the same however many rows still want a token, so rows that are done
are taken out of the batch now and then. (Letting new texts in at once would save a tenth of the time
of a default batch, whose answers mostly reach their limit, and would write other text.) Keys and
values lie in buffers made once: growing them by concatenation copies the whole cache at every token,
which on a CPU is slower than the model itself. Weights are laid out for the CPU once
(`packed_linear.py`). The nucleus (top-p) is looked for among the `top_k` most likely tokens, because
sorting a whole vocabulary per row costs more than a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from razor.data.kv_buffer import BufferedLayer
from razor.data.packed_linear import packed_linears
from razor.data.temperature import Ramp

COMPACT_BELOW = 0.8
"""Finished rows leave the batch when fewer than this share of it is still writing."""

PADDING = -1
"""Stands in front of shorter starts; no token."""


@dataclass(frozen=True)
class Free:
    """A turn the model writes: at most `limit` tokens, ended by one of `stops`.

    `keep` are those stop tokens that belong to the turn and are kept; any other is dropped.
    """

    limit: int
    stops: frozenset[int]
    keep: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Fixed:
    """A turn that is given: these tokens."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn: logits / temperature, the `top_k` likeliest, of these the nucleus.

    The nucleus is the fewest likeliest tokens that hold `top_p` of the whole probability;
    temperature 0 takes the likeliest token.
    """

    temperature: float | Ramp = 1.0
    top_p: float = 1.0
    top_k: int = 256

    def draw(self, logits: Tensor, generator: torch.Generator, places: Sequence[int] = ()) -> Tensor:
        """One token id per row of logits [B, V]: int64 [B]; `places` [B] in their turns, for a `Ramp`."""
        if self.temperature == 0:
            return logits.argmax(-1)
        scaled = logits.float()
        if isinstance(self.temperature, Ramp):
            heat = [[self.temperature.at(place)] for place in places]
            scaled = scaled / torch.tensor(heat, device=logits.device)
        elif self.temperature != 1:
            scaled = scaled / self.temperature
        top, ids = scaled.topk(min(self.top_k, scaled.shape[-1]))
        shares = (top - scaled.logsumexp(-1, keepdim=True)).exp()
        before = shares.cumsum(-1) - shares  # the token that reaches top_p is still in
        limits = (shares * (before < self.top_p)).cumsum(-1)
        uniform = torch.rand(len(limits), 1, generator=generator, device=limits.device)
        chosen = (limits <= uniform * limits[:, -1:]).sum(-1, keepdim=True)
        return ids.gather(1, chosen.clamp(max=ids.shape[-1] - 1)).squeeze(1)


class Text:
    """One row while it is written.

    Attributes:
        tokens: everything so far, start included.
        spans: for each finished Free turn the [first, last) places in `tokens`.
        done: the script is at its end.
        room: most tokens the script adds.
    """

    def __init__(self, start: Sequence[int], script: Sequence[Free | Fixed]) -> None:
        if any(isinstance(a, Free) and isinstance(b, Free) for a, b in pairwise(script)):
            raise ValueError("two Free turns in a row: nothing would take the place of the stop token")
        self.tokens = list(start)
        self.spans: list[tuple[int, int]] = []
        self.done = False
        self.room = sum(t.limit if isinstance(t, Free) else len(t.tokens) for t in script)
        self._script = list(script)
        self._forced: list[int] = []
        self._turn: Free | None = None
        self._begin = 0
        self._next_turn()

    @property
    def turn(self) -> Free | None:
        """The turn the model is writing; None while tokens are given, and at the end."""
        return self._turn

    @property
    def place(self) -> int:
        """Tokens of the present turn so far; 0 where none is written."""
        return len(self.tokens) - self._begin if self._turn else 0

    def take(self, sampled: int) -> bool:
        """Advance by one token, the given one if one is due. True if `sampled` was used."""
        turn = self._turn
        if turn is None:
            self._give()
            return False
        stopped = sampled in turn.stops
        kept = not stopped or sampled in turn.keep
        if kept:
            self.tokens.append(sampled)
        if stopped or len(self.tokens) - self._begin >= turn.limit:
            self.spans.append((self._begin, len(self.tokens)))
            self._next_turn()
            if not kept and not self.done:
                self._give()  # in place of the dropped stop token, so that the row stays in step
        return True

    def _give(self) -> None:
        self.tokens.append(self._forced.pop(0))
        if not self._forced:
            self._next_turn()

    def _next_turn(self) -> None:
        self._turn = None
        if not self._script:
            self.done = True
            return
        turn = self._script.pop(0)
        if isinstance(turn, Fixed):
            self._forced = list(turn.tokens)
        else:
            self._turn, self._begin = turn, len(self.tokens)


@torch.inference_mode()
def write(
    model: Any,
    texts: Sequence[Text],
    sampling: Sampling,
    generator: torch.Generator,
    vocabulary: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the texts to the end of their scripts, in place.

    Args:
        model: causal language model; its device is used, its mode (train or eval) is left as it
            was.
        sampling: how tokens are drawn.
        texts: rows; starts may be of any length, equal ones are fastest.
        generator: on the model's device; the texts are a function of its state.
        vocabulary: ids at and above it are padding of the output layer and never drawn.
        progress: called after each step with the number of sampled tokens that were used.
    """
    training = model.training
    model.eval()
    try:
        with packed_linears(model):
            _write(model, list(texts), sampling, generator, vocabulary, progress)
    finally:
        model.train(training)


def _write(
    model: Any,
    live: list[Text],
    sampling: Sampling,
    generator: torch.Generator,
    vocabulary: int,
    progress: Callable[[int], None] | None,
) -> None:
    longest = max(len(text.tokens) for text in live)
    capacity = longest + max(text.room for text in live)
    layers = [BufferedLayer(capacity) for _ in range(model.config.get_text_config().num_hidden_layers)]
    cache = Cache(layers=layers)  # type: ignore[arg-type]
    padded = [[PADDING] * (longest - len(text.tokens)) + text.tokens for text in live]
    starts, copies = torch.tensor(padded, device=model.device).unique(dim=0, return_inverse=True)
    inputs, before = starts.clamp(min=0), (starts == PADDING).sum(1)  # equal starts are read once
    while True:
        read = layers[0].length
        places = torch.arange(read, read + inputs.shape[1], device=model.device)
        logits = model(
            input_ids=inputs,
            position_ids=(places - before[:, None]).clamp(min=0),
            attention_mask=_mask(model, before, read, inputs.shape[1]),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1, :vocabulary]
        if copies is not None:
            logits, before = logits.index_select(0, copies), before[copies]
            for layer in layers:
                layer.keep_rows(copies)
            copies = None
        drawn = sampling.draw(logits, generator, [text.place for text in live]).tolist()
        used = sum(text.take(token) for text, token in zip(live, drawn, strict=True) if not text.done)
        if progress:
            progress(used)
        writing = [row for row, text in enumerate(live) if not text.done]
        if not writing:
            return
        if len(writing) < COMPACT_BELOW * len(live):
            rows = torch.tensor(writing, device=model.device)
            for layer in layers:
                layer.keep_rows(rows)
            live, before = [live[row] for row in writing], before[rows]
        # A finished row waiting to be taken out repeats its last token; nobody reads what it says.
        inputs = torch.tensor([[text.tokens[-1]] for text in live], device=model.device)


def _mask(model: Any, before: Tensor, read: int, new: int) -> Tensor | None:
    """What hides the padding in front [B] from `new` tokens after `read`; none to hide is most often None."""
    if before.any():
        return torch.arange(read + new, device=before.device) >= before[:, None]
    return _everything(model, read + 1) if new == 1 else None


def _everything(model: Any, length: int) -> Tensor | None:
    """A mask [1, 1, 1, length] that masks nothing, where that makes attention faster; else None.

    With a mask Transformers lets the queries that share a key-value head attend together; without,
    it asks SDPA to repeat the heads, which on a CPU in bf16 takes five times as long.
    """
    config = model.config.get_text_config()
    windowed = any("sliding" in kind for kind in getattr(config, "layer_types", None) or [])
    if model.device.type != "cpu" or config._attn_implementation != "sdpa" or windowed:
        return None
    return torch.ones(1, 1, 1, length, dtype=torch.bool)
