"""What the teacher is asked to continue: a chat whose user turn it invents, or plain text.

A model tuned on chats has seen so many user turns that it can write one itself. Given the
template's text up to the place where the user would speak, it continues with a question of the kind
it was trained on, and then answers it: training data with the teacher's own distribution and
nothing else needed (Magpie, arXiv 2406.08464; for quantization LLM-QAT, arXiv 2305.17888). The
place is found by rendering a message that is only a marker and splitting at it.

A base model has no template; it continues from BOS, or from a random common token if it knows no
BOS. A chat model can be asked for plain text too. Some of these name a mark of their template as BOS
(SmolLM2: the one that opens every turn); after it a turn would follow, no text, so they begin with a
common token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from razor.data.document import name_of, render_chat
from razor.data.sampling import Fixed, Free, Text
from razor.errors import RazorError

MARKER = "razor-marks-the-user-turn"


@dataclass(frozen=True)
class Turns:
    """The fixed tokens of a text and the limits of what is written between them.

    Attributes:
        starts: the possible beginnings; each text takes one of them.
        script: what follows (see `razor.data.sampling`); its last turn is the response.
    """

    starts: tuple[tuple[int, ...], ...]
    script: tuple[Free | Fixed, ...]

    @property
    def longest(self) -> int:
        """Most tokens a text can get."""
        sizes = [turn.limit if isinstance(turn, Free) else len(turn.tokens) for turn in self.script]
        return max(map(len, self.starts)) + sum(sizes)

    @property
    def given(self) -> list[tuple[int, ...]]:
        """Runs of tokens that every text shares."""
        fixed = [turn.tokens for turn in self.script if isinstance(turn, Fixed)]
        return [*self.starts, *fixed] if len(self.starts) == 1 else fixed

    def texts(self, count: int, generator: torch.Generator, first: int = 0) -> list[Text]:
        """Texts ready to be written; `first`, how many there were before, changes nothing here."""
        device = generator.device
        chosen = torch.randint(len(self.starts), (count,), generator=generator, device=device)
        return [Text(self.starts[which], self.script) for which in chosen.tolist()]

    def describe(self) -> list[Any]:
        """Everything about the turns that shapes the text, JSON-able."""
        script = [
            [turn.limit, sorted(turn.stops), sorted(turn.keep)]
            if isinstance(turn, Free)
            else list(turn.tokens)
            for turn in self.script
        ]
        return [[list(start) for start in self.starts], script]


def turns_of(tokenizer: Any, max_user_tokens: int, max_answer_tokens: int) -> Turns:
    """A chat if the tokenizer has a template, else a text of at most `max_answer_tokens`."""
    if getattr(tokenizer, "chat_template", None):
        return chat_turns(tokenizer, max_user_tokens, max_answer_tokens)
    return text_turns(tokenizer, max_answer_tokens)


def text_turns(
    tokenizer: Any, max_answer_tokens: int, prefixes: Sequence[tuple[int, ...]] | None = None
) -> Turns:
    """Plain text, from BOS or a common token; with `prefixes` (token ids), from one of these after BOS."""
    keep = frozenset({tokenizer.eos_token_id} - {None})
    script = (Free(max_answer_tokens, special_ids(tokenizer) | keep, keep),)
    bos = opening(tokenizer)
    if prefixes is not None:
        return Turns(tuple((*bos, *prefix) for prefix in prefixes), script)
    if bos:
        return Turns((bos,), script)
    return Turns(tuple((token,) for token in common_tokens(tokenizer)), script)


def opening(tokenizer: Any) -> tuple[int, ...]:
    """BOS as the one token of a tuple; empty if there is none, or if the template opens turns with it."""
    bos = tokenizer.bos_token_id
    if bos is None or _opens_turns(tokenizer, tokenizer.bos_token):
        return ()
    return (bos,)


def _opens_turns(tokenizer: Any, bos: str) -> bool:
    if not getattr(tokenizer, "chat_template", None):
        return False
    asked = render_chat(tokenizer, [{"role": "user", "content": MARKER}], generate=True)
    return bos in asked.partition(MARKER)[2]


def chat_turns(tokenizer: Any, max_user_tokens: int, max_answer_tokens: int) -> Turns:
    """A chat whose user turn the model writes, then answers.

    Raises:
        RazorError: no chat template, or one that changes what is said.
    """
    marked = [{"role": "user", "content": MARKER}]
    asked = render_chat(tokenizer, marked, generate=True, enable_thinking=False)
    answered = render_chat(tokenizer, [*marked, {"role": "assistant", "content": MARKER}], generate=False)
    if asked.count(MARKER) != 1 or answered.count(MARKER) != 2:
        raise RazorError(
            f"The chat template of '{name_of(tokenizer)}' does not repeat a message once and "
            f"unchanged, so the teacher "
            "cannot write user turns from it: use data=local_jsonl or data=hub_instruct."
        )
    before, between = asked.split(MARKER)
    after = answered.split(MARKER)[2]
    start, middle, end = (
        tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (before, between, after)
    )
    special = special_ids(tokenizer)
    finish = frozenset({*end[:1], tokenizer.eos_token_id} - {None})
    user = Free(max_user_tokens, special | finish | frozenset(middle[:1]))
    answer = Free(max_answer_tokens, special | finish, finish)
    return Turns((start,), (user, Fixed(middle), answer))


def common_tokens(tokenizer: Any, first: int = 4096) -> list[int]:
    """Tokens a text may begin with: those of the first (most frequent) ids that are words."""
    special = special_ids(tokenizer)
    candidates = [token for token in range(min(first, len(tokenizer))) if token not in special]
    texts = tokenizer.batch_decode([[token] for token in candidates])
    words = [token for token, text in zip(candidates, texts, strict=True) if text.strip().isalpha()]
    return words or candidates


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Tokens that are marks, not text: EOS and the like, and all declared special."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(tokenizer.all_special_ids) | {token for token, mark in added if mark.special}
