"""What a teacher is asked to write, as a person says it: kinds, shares, files and limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from razor.data.mix import Mix, shares_of
from razor.data.prompts import passage_turns, prompt_turns
from razor.data.turns import Turns, chat_turns, text_turns, turns_of
from razor.errors import RazorError


@dataclass(frozen=True)
class Asked:
    """The options of `TeacherMade` about kinds of text; see there.

    Raises:
        RazorError: a file without a share for it, or a share without its file.
    """

    max_user_tokens: int
    max_answer_tokens: int
    mix: Mapping[str, float] | None = None
    prompts: str | None = None
    passages: str | None = None
    max_prompt_tokens: int = 256
    prefix_tokens: int = 16

    def __post_init__(self) -> None:
        shares = {} if self.mix is None else shares_of(self.mix)
        for kind, option, file in (("file", "prompts", self.prompts), ("text", "passages", self.passages)):
            if file is not None and not isinstance(file, str):
                raise RazorError(f"data.source.{option}={file} must be the name of a file.")
            if file is not None and kind not in shares:
                raise RazorError(
                    f"data.source.{option}='{file}' is not used: give the kind '{kind}' a share, such as "
                    f"data.source.mix={{{kind}: 1}}."
                )
        if "file" in shares and self.prompts is None:
            raise RazorError("data.source.mix has a share of 'file': name it with data.source.prompts=FILE.")

    def turns(self, tokenizer: Any) -> Turns | Mix:
        """What is written between which tokens.

        Raises:
            RazorError: a chat for a tokenizer without a template, or a file that is missing, empty or wrong.
        """
        if self.mix is None:
            return turns_of(tokenizer, self.max_user_tokens, self.max_answer_tokens)
        shares = shares_of(self.mix)
        return Mix(shares, {kind: self._turns(kind, tokenizer) for kind in shares})

    def _turns(self, kind: str, tokenizer: Any) -> Turns:
        if kind == "chat":
            return chat_turns(tokenizer, self.max_user_tokens, self.max_answer_tokens)
        if kind == "file":
            assert self.prompts is not None
            return prompt_turns(tokenizer, self.prompts, self.max_prompt_tokens, self.max_answer_tokens)
        if self.passages is not None:
            return passage_turns(tokenizer, self.passages, self.prefix_tokens, self.max_answer_tokens)
        return text_turns(tokenizer, self.max_answer_tokens)
