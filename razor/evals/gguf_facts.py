"""What a GGUF file says about itself, as far as scoring it needs that: tokens, chat template, how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from razor.errors import RazorError


@dataclass(frozen=True)
class GGUFFacts:
    """Of one file.

    Attributes:
        parameters: numbers in its tensors.
        bytes: of its tensors.
        reads: most tokens the model has learned to read; None where it does not say.
        bos, eos: tokens that begin and end a text; None where there are none.
        bos_text, eos_text: what they are written as.
        chat_template: in Jinja; None of a base model.
    """

    parameters: int
    bytes: int
    reads: int | None
    bos: int | None
    eos: int | None
    bos_text: str
    eos_text: str
    chat_template: str | None

    @classmethod
    def of(cls, path: Path) -> GGUFFacts:
        """Read the head of a file.

        Raises:
            RazorError: it is no GGUF, or a damaged one.
        """
        import gguf

        try:
            reader = gguf.GGUFReader(str(path))
            architecture = _value(reader, "general.architecture")
            words = reader.get_field("tokenizer.ggml.tokens")
            bos, eos = (_value(reader, f"tokenizer.ggml.{which}_token_id") for which in ("bos", "eos"))
            return cls(
                sum(int(tensor.n_elements) for tensor in reader.tensors),
                sum(int(tensor.n_bytes) for tensor in reader.tensors),
                _value(reader, f"{architecture}.context_length"),
                bos,
                eos,
                _word(words, bos),
                _word(words, eos),
                _value(reader, "tokenizer.chat_template"),
            )
        except (ValueError, KeyError, IndexError, OSError, UnicodeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise RazorError(f"'{path}' is no GGUF file that can be read: {reason}.") from error


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


def _word(words: Any, token: int | None) -> str:
    return "" if token is None or words is None else str(words.contents(token))
