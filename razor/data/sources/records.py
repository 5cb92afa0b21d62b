"""The shapes a record of training data may have, and how each becomes documents.

| shape | it is |
|---|---|
| `{"messages": [{"role": "user", "content": ...}, ...]}` | a chat |
| `{"conversations": [{"from": "human", "value": ...}, ...]}` | a chat, as many published sets write
it | | `{"prompt": ..., "response": ...}` | one question and its answer | | `{"text": ...}` | plain
text |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from razor.data.document import Document, Message, from_messages, from_pair, from_text
from razor.errors import RazorError

SHAPES = (
    '{"messages": [{"role", "content"}]}, {"conversations": [{"from", "value"}]}, '
    '{"prompt", "response"} or {"text"}'
)

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""Who speaks, in the words of the published sets -> in the words of chat templates."""


def documents_of(record: Any, tokenizer: Any, where: str) -> list[Document]:
    """The documents of one record.

    Args:
        record: a mapping of one of the shapes above; further keys are ignored.
        tokenizer: a Transformers tokenizer.
        where: what to call the record in an error text, such as "line 3 of 'chats.jsonl'".

    Raises:
        RazorError: none of the shapes, or one whose parts are not text.
    """
    if not isinstance(record, Mapping):
        raise RazorError(f"{where} is {type(record).__name__}, not an object: expected {SHAPES}.")
    try:
        for key in ("messages", "conversations"):
            if key in record:
                return from_messages(tokenizer, messages_of(record[key], where))
        if "prompt" in record and "response" in record:
            prompt, response = (_text(record[key], key, where) for key in ("prompt", "response"))
            return from_pair(tokenizer, prompt, response)
        if "text" in record:
            return [from_text(tokenizer, _text(record["text"], "text", where))]
    except RazorError as error:
        if str(error).startswith(where):
            raise
        raise RazorError(f"{where}: {error}") from error
    raise RazorError(f"{where} has the keys {sorted(map(str, record))}: expected {SHAPES}.")


def messages_of(turns: Any, where: str) -> list[Message]:
    """Turns of either chat shape as messages with `role` and `content`."""
    if not isinstance(turns, list) or not turns:
        raise RazorError(f"{where} has a chat that is no list of turns, or an empty one: expected {SHAPES}.")
    messages: list[Message] = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            raise RazorError(
                f"{where} has a turn that is {type(turn).__name__}, not an object: expected {SHAPES}."
            )
        speaker = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise RazorError(f"{where} has a turn by {speaker!r}. Choices: {', '.join(sorted(ROLES))}.")
        messages.append({"role": ROLES[speaker], "content": _text(content, "content", where)})
    return messages


def _text(value: Any, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise RazorError(
            f"{where} has a '{key}' that is {type(value).__name__}, not text: expected {SHAPES}."
        )
    return value
