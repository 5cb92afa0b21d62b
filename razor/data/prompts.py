"""Files that tell the teacher what to write about: prompts to answer, passages to go on from.

| file | holds |
|---|---|
| prompts, `.txt` | one prompt a line |
| prompts, `.jsonl` | `{"prompt": ...}`, `{"messages": [...]}` or `{"conversations": [...]}` a line; a chat must
  end with the user, and may hold a system message and earlier turns |
| passages, any text | paragraphs, parted by blank lines; each gives its first tokens |

Blank lines are skipped. Everything else that is no prompt is an error with the number of its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from razor.data.document import render_chat
from razor.data.sources.records import messages_of
from razor.data.text_file import read_text
from razor.data.turns import Turns, chat_turns, opening, text_turns
from razor.errors import RazorError

SHAPES = '{"prompt"}, {"messages": [{"role", "content"}]} or {"conversations": [{"from", "value"}]}'


def prompt_turns(tokenizer: Any, path: str, max_prompt_tokens: int, max_answer_tokens: int) -> Turns:
    """Answers to the prompts of a file: in the chat template if there is one, else what follows the prompt.

    Args:
        tokenizer: a Transformers tokenizer.
        path: a .txt or .jsonl file.
        max_prompt_tokens: most tokens of a prompt, template included.
        max_answer_tokens: most tokens of an answer.

    Raises:
        RazorError: no such file, an empty one, a line that is no prompt, a prompt that is too long, or a chat
            for a tokenizer without template.
    """
    chats = bool(getattr(tokenizer, "chat_template", None))
    starts = []
    for where, prompt in _prompts(path):
        tokens = _tokens(tokenizer, prompt, chats, where)
        if len(tokens) > max_prompt_tokens:
            raise RazorError(
                f"{where} is a prompt of {len(tokens)} tokens{', template included' if chats else ''}; at most "
                f"data.source.max_prompt_tokens={max_prompt_tokens} are allowed: shorten it or raise that."
            )
        starts.append(tokens)
    if not starts:
        raise RazorError(f"data.source.prompts='{path}' is empty: it needs one prompt per line.")
    whole = chat_turns(tokenizer, 1, max_answer_tokens) if chats else text_turns(tokenizer, max_answer_tokens)
    return Turns(tuple(starts), whole.script[-1:])


def passage_turns(tokenizer: Any, path: str, prefix_tokens: int, max_answer_tokens: int) -> Turns:
    """Text that goes on from the first `prefix_tokens` tokens of a paragraph of a file.

    Raises:
        RazorError: no such file, or an empty one.
    """
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", read_text(path, "data.source.passages"))]
    encoded = tokenizer([p for p in paragraphs if p] or [""], add_special_tokens=False, verbose=False)
    prefixes = [tuple(ids[:prefix_tokens]) for ids in encoded["input_ids"] if ids]
    if not prefixes:
        raise RazorError(f"data.source.passages='{path}' is empty: it needs text to go on from.")
    return text_turns(tokenizer, max_answer_tokens, prefixes)


def _prompts(path: str) -> Iterator[tuple[str, Any]]:
    """(what to call it, text or messages) of each line."""
    suffix = Path(path).suffix.lower()
    readers: dict[str, Callable[[str, str], Any]] = {".txt": lambda line, _: line, ".jsonl": _record}
    if suffix not in readers:
        raise RazorError(
            f"data.source.prompts='{path}' must end in .txt (one prompt per line) or .jsonl ({SHAPES})."
        )
    for number, line in enumerate(read_text(path, "data.source.prompts").split("\n"), start=1):
        if line.strip():
            where = f"Line {number} of '{path}'"
            yield where, readers[suffix](line.strip(), where)


def _record(line: str, where: str) -> Any:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise RazorError(f"{where} is no JSON: {error.msg} at column {error.colno}.") from error
    if not isinstance(record, dict):
        raise RazorError(f"{where} is {type(record).__name__}, not an object: expected {SHAPES}.")
    for key in ("messages", "conversations"):
        if key in record:
            messages = messages_of(record[key], where)
            if messages[-1]["role"] != "user":
                raise RazorError(f"{where} ends with '{messages[-1]['role']}': the user must speak last.")
            return messages
    prompt = record.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RazorError(f"{where} has no prompt in it (keys {sorted(record)}): expected {SHAPES}.")
    return prompt


def _tokens(tokenizer: Any, prompt: Any, chats: bool, where: str) -> tuple[int, ...]:
    if isinstance(prompt, str) and not chats:
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        return (*opening(tokenizer), *ids)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    try:
        text = render_chat(tokenizer, messages, generate=True, enable_thinking=False)
    except RazorError as error:
        raise RazorError(f"{where}: {error}") from error
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
