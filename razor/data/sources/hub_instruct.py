"""Instructions and answers from a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from razor.data.document import Document, from_turns
from razor.data.sources.base import Record, RecordSource, check_limit
from razor.data.sources.hub import check_hub, hub_rows, known_revision
from razor.data.sources.hub_text import ROW_BYTES
from razor.data.sources.records import documents_of, messages_of
from razor.errors import RazorError


class HubInstruct(RecordSource):
    """Chats, or prompts with responses, of a hub data set.

    Public sets have the odd row no template accepts (a chat that the assistant begins). Such rows are left out
    and counted in one line, unless the first rows are all like that: then the first one's error is raised.

    Args:
        id: data set, such as "BAAI/Infinity-Instruct".
        name: its configuration, if it has several.
        split: such as "train".
        messages: column with chats, either as role/content or as from/value turns; or None and
        prompt, response: two columns of text.
        answer: where a turn keeps what the assistant is to say, if not in its content, such as
            "info.answer_content" (sets of reasoning models keep the answer apart).
        between: write chats as plain text with this before each answer, such as a line break and "Answer: ", for
            base models; None: by the model's chat template.
        streaming: read over the network as needed instead of downloading everything first.
        limit: read at most this many rows; None for all.
        revision: branch, tag or commit; None for the newest.

    Raises:
        RazorError: not exactly one of `messages` and `prompt` with `response` was named.
    """

    tolerant = True

    def __init__(
        self,
        id: str,
        name: str | None = None,
        split: str = "train",
        messages: str | None = None,
        prompt: str | None = None,
        response: str | None = None,
        streaming: bool = True,
        limit: int | None = None,
        answer: str | None = None,
        revision: str | None = None,
        between: str | None = None,
    ) -> None:
        check_limit(limit)
        if (messages is None) == (prompt is None) or (prompt is None) != (response is None):
            raise RazorError(
                f"data.source names messages={messages}, prompt={prompt}, response={response}: "
                f"name either the column "
                "'messages' or the columns 'prompt' and 'response'."
            )
        if answer is not None and messages is None:
            raise RazorError(
                f"data.source.answer={answer} is a place in the turns of chats: name 'messages' too."
            )
        if between is not None and messages is None:
            raise RazorError(
                f"data.source.between={between!r} is for the turns of chats: name 'messages' too."
            )
        self.id = id
        self.name = name
        self.split = split
        self.columns = {"messages": messages} if messages else {"prompt": prompt, "response": response}
        self.streaming = streaming
        self.limit = limit
        self.answer = answer
        self.revision = revision
        self.between = between

    def check(self) -> None:
        """Raise RazorError if the hub or the data set is out of reach."""
        check_hub(self.id, self.revision, self.streaming)

    def records(self) -> Iterator[Record]:
        """A row each, with the columns that were named."""
        rows = hub_rows(self.id, self.name, self.split, self.streaming, self.limit, self.revision)
        for number, row in enumerate(rows, start=1):
            yield f"Row {number} of '{self.id}'", self._record(row)

    def _record(self, row: Mapping[str, Any]) -> dict[str, Any]:
        for column in self.columns.values():
            if column not in row:
                raise RazorError(f"'{self.id}' has no column '{column}'. Choices: {', '.join(sorted(row))}.")
        return {key: row[str(column)] for key, column in self.columns.items()}

    def encode(self, tokenizer: Any, record: Any, where: str) -> list[Document]:
        """One document or more."""
        if self.answer is not None:
            turns = record["messages"] if isinstance(record["messages"], list) else []
            record = {"messages": [_with_answer(turn, self.answer, where) for turn in turns]}
        if self.between is not None:
            return [from_turns(tokenizer, messages_of(record["messages"], where), self.between)]
        return documents_of(record, tokenizer, where)

    def identity(self) -> dict[str, Any]:
        """All that chooses the rows."""
        chosen = {key: value for key, value in vars(self).items() if key != "streaming"}
        if self.between is None:
            del chosen["between"]  # tokens that were made before there was such an option keep their place
        return {"kind": "hub_instruct", **chosen, "revision": known_revision(self.id, self.revision)}

    def size(self) -> int | None:
        """A guess from the limit."""
        return None if self.limit is None else self.limit * ROW_BYTES

    def empty(self) -> RazorError:
        """No rows."""
        return RazorError(f"'{self.id}' ({self.split}) has no rows.")


def _with_answer(turn: Any, place: str, where: str) -> Any:
    """A turn of the assistant with what lies at `place` as its content; other turns as they are."""
    if not isinstance(turn, Mapping) or turn.get("role") != "assistant":
        return turn
    found: Any = turn
    for key in place.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, str) or not found:
        raise RazorError(f"{where} has an assistant's turn without text at '{place}'.")
    return {"role": "assistant", "content": found}
