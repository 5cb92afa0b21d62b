"""One document: its tokens, and which of them the student has to predict.

Distillation compares teacher and student where the *answer* is written, not where the question is
read. So a document is two arrays of the same length: the tokens, and a mask that is true on the
tokens to be predicted (`response`). Plain text is all response but its first token, which nothing
precedes.

**Chat.** A chat template is a program that turns messages into one string; it does not say which
characters an assistant wrote. They are found by rendering prefixes: the conversation up to an
answer, with the generation prompt, is what the model reads; the same with the answer is what it
should have written. What the second adds to the first is the answer and its end-of-turn token.
Whitespace after the end-of-turn token is layout and carries no loss: generation has stopped by
then.

Some templates rewrite history (Qwen3 removes the reasoning of earlier turns), so that the
conversation up to answer 1 is no prefix of the conversation up to answer 2. Each answer then
becomes a document of its own, with the history as the model would really see it.

**Characters to tokens.** The whole string is tokenized once and the tokenizer's offsets tell which
tokens lie in an answer, so nothing depends on a tokenizer splitting a prefix the way it splits the
whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from razor.errors import RazorError

Message = Mapping[str, str]
"""One turn of a chat: {"role": "system" | "user" | "assistant", "content": text}."""


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens and what is to be predicted of them.

    Attributes:
        tokens: int32 [n].
        response: bool [n]; `response[i]` means token i is to be predicted from those before it.
            Never true at 0.
    """

    tokens: NDArray[np.int32]
    response: NDArray[np.bool_]

    def __post_init__(self) -> None:
        tokens = np.asarray(self.tokens, dtype=np.int32)
        response = np.array(self.response, dtype=np.bool_)
        if tokens.ndim != 1 or tokens.shape != response.shape:
            raise ValueError(f"tokens {tokens.shape} and response {response.shape} must be one row each")
        response[:1] = False
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "response", response)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_text(self) -> bool:
        """True if every token but the first is to be predicted: it may be cut anywhere."""
        return bool(self.response[1:].all())

    @property
    def targets(self) -> int:
        """Number of tokens that carry a loss."""
        return int(self.response.sum())

    def key(self) -> bytes:
        """Equal for documents with equal tokens."""
        return self.tokens.tobytes()


def from_text(tokenizer: Any, text: str, first: bool = True, last: bool = True) -> Document:
    """Plain text: BOS if the tokenizer sets one, the text, EOS. All but the first token is response.

    A long text may come in parts: the first alone gets BOS, the last alone EOS.
    """
    _check_text(text)
    tokens = list(
        tokenizer(text, add_special_tokens=first, verbose=False)["input_ids"]
    )  # too long: rows are cut
    eos = tokenizer.eos_token_id
    ended = eos is not None and tokens[-1:] == [eos]
    if last and eos is not None and not ended:
        tokens.append(eos)
    if not last and ended:
        tokens.pop()
    return Document(np.array(tokens, dtype=np.int32), np.ones(len(tokens), dtype=np.bool_))


def from_pair(tokenizer: Any, prompt: str, response: str) -> list[Document]:
    """A prompt and its response: a chat where the tokenizer has a template, else plain text.

    Without a template the response starts right after the prompt's last character (put the space or
    the line break between them into either) and ends with EOS.
    """
    if getattr(tokenizer, "chat_template", None):
        pair = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        return from_messages(tokenizer, pair)
    text = prompt + response
    return [_ended(tokenizer, text, [(len(prompt), len(text))])]


def from_turns(tokenizer: Any, messages: Sequence[Message], between: str) -> Document:
    """A chat as plain text, for models without a template: only what the assistant writes is response, and an EOS.

    Args:
        tokenizer: a Transformers tokenizer.
        messages: the turns; a blank line parts what others say from what was before.
        between: stands before an answer, such as a line break and "Answer: ".

    Raises:
        RazorError: no answer to learn from.
    """
    text, spans = "", []
    for message in messages:
        text += between if message["role"] == "assistant" else "\n\n" if text else ""
        start, text = len(text), text + message["content"]
        if message["role"] == "assistant":
            spans.append((start, len(text)))
    if not spans:
        raise _no_answer(messages)
    return _ended(tokenizer, text, spans)


def from_messages(tokenizer: Any, messages: Sequence[Message]) -> list[Document]:
    """A chat: only what the assistant writes, end-of-turn included, is response.

    Returns one document, or one per answer if the template rewrites earlier turns (see the module's
    text).

    Raises:
        RazorError: no chat template, no answer to learn from, or a template that does not fit the
            messages.
    """
    spans: list[tuple[int, int]] = []
    documents: list[Document] = []
    text = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt, done = _render_answer(tokenizer, messages[: index + 1])
        if spans and not prompt.startswith(text):
            documents.append(_mark(tokenizer, text, spans))
            spans = []
        text = done
        spans.append((len(prompt), len(done.rstrip())))
    if not spans:
        raise _no_answer(messages)
    return [*documents, _mark(tokenizer, text, spans)]


def render_chat(tokenizer: Any, messages: Sequence[Message], generate: bool, **options: Any) -> str:
    """The string a chat template makes of messages; `generate` adds the start of an answer.

    Raises:
        RazorError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise RazorError(
            f"The tokenizer '{name_of(tokenizer)}' has no chat template, so chat messages cannot "
            f"be used with it: "
            'take an instruction-tuned model, or data of the form {"prompt", "response"} or '
            '{"text"}.'
        )
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=generate,
            **options,
        )
    except Exception as error:  # templates are programs: they raise what they like
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        roles = [message["role"] for message in messages]
        raise RazorError(
            f"The chat template of '{name_of(tokenizer)}' refuses messages with the roles {roles}: {reason}"
        ) from error


def name_of(tokenizer: Any) -> str:
    """What to call a tokenizer in an error text."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def _render_answer(tokenizer: Any, messages: Sequence[Message]) -> tuple[str, str]:
    """The string before the last message's answer, and the string with it.

    Templates of reasoning models open the answer in two ways; answers without reasoning fit the
    first.
    """
    if len(messages) == 1:
        raise RazorError("A chat cannot begin with an 'assistant' message: put a 'user' message before it.")
    done = render_chat(tokenizer, messages, generate=False)
    for options in ({"enable_thinking": False}, {}):
        prompt = render_chat(tokenizer, messages[:-1], generate=True, **options)
        if done.startswith(prompt):
            return prompt, done
    raise RazorError(
        f"The chat template of '{name_of(tokenizer)}' does not continue its own generation prompt "
        f"with the answer, so "
        'answers cannot be told from prompts: use data of the form {"text"} or another tokenizer.'
    )


def _no_answer(messages: Sequence[Message]) -> RazorError:
    roles = [message["role"] for message in messages]
    return RazorError(f"A chat needs an 'assistant' message to learn from; this one has the roles {roles}.")


def _ended(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> Document:
    """Plain text with its responses marked, and an EOS after it that is one."""
    document = _mark(tokenizer, text, spans, special=True)
    ended = len(document.tokens) > 0 and document.tokens[-1] == tokenizer.eos_token_id
    if tokenizer.eos_token_id is None or ended:
        return document
    tokens = np.append(document.tokens, np.int32(tokenizer.eos_token_id))
    return Document(tokens, np.append(document.response, True))


def _check_text(text: str) -> None:
    """Raise RazorError for half a character, which JSON may hold and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RazorError(
            f"The text holds half a character (a lone surrogate, position {error.start})."
        ) from error


def _mark(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]], special: bool = False) -> Document:
    """Tokenize a string; response are the tokens that hold a character of one of the spans."""
    if not getattr(tokenizer, "is_fast", False):
        raise RazorError(
            f"The tokenizer '{name_of(tokenizer)}' cannot tell which characters a token holds: "
            f"answers need a fast "
            "tokenizer (a folder with a tokenizer.json)."
        )
    _check_text(text)
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, verbose=False)
    starts, ends = np.array(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
    response = np.zeros(len(starts), dtype=np.bool_)
    for first, last in spans:
        response |= (ends > first) & (starts < last) & (ends > starts)
    return Document(np.array(encoded["input_ids"], dtype=np.int32), response)
