"""What an export reads and writes text with: tokenizer, chat template, generation config; and texts to try them on.

Weights that are right say nothing to a user whose prompt becomes other tokens. So whatever reads text back from an
export, Transformers or llama.cpp, has to read these texts as the student's tokenizer does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from razor.errors import RazorError
from razor.export.packed import load_tokenizer

if TYPE_CHECKING:
    from razor.export.compressed import Compressed

TEXTS = (
    "The city library opened its doors in 1904, and people have come ever since: students, readers, children who "
    "want a story. Upstairs there are maps, old newspapers and 12,345 letters; nobody has read all of them. One "
    "winter evening, when snow lay on the roof, the librarian found a small blue book that no catalogue knew "
    "about, and in it the first sentence: 'It was here long before the town.'",
    "def f(x):\n\treturn {'a': x**2, \"b\": [1, 22, 333, 4444]}\n\n\n# don't  stop   there\r\n",
    "Grüße aus Zürich – naïve café, 東京の天気, Привет мир, مرحبا, 한국어, 👩‍👩‍👧 and 1½ €",
    "  leading spaces, trailing ones   ",
    "I'LL say it's OK; we've, they'd\u00a0and\u200bmore...  \n \n x\t\ty",
)
"""What tokenizers have to read alike; predictions are compared on the first."""


def texts(tokenizer: Any) -> Iterator[str]:
    """Texts to compare tokenizers on; also between the tokenizer's marks, and as a conversation."""
    yield from TEXTS
    for mark in list(dict.fromkeys(str(t) for t in tokenizer.all_special_tokens))[:8]:
        yield f"one{mark}two {mark} three{mark}"
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "Hello there!"}, {"role": "assistant", "content": "Hi.\n\nYes?"}]
        yield tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


def write_words(compressed: Compressed, folder: Path) -> None:
    """Tokenizer and generation config; of a model that reads no text nothing."""
    if compressed.tokenizer is None:
        return
    compressed.tokenizer.save_pretrained(folder)
    compressed.model.generation_config.save_pretrained(folder)


def check_words(compressed: Compressed, folder: Path) -> None:
    """Read tokenizer and generation config back, as a runtime does, and compare them with the student's.

    Raises:
        RazorError: a text becomes other tokens, a chat another prompt, or generation begins or ends elsewhere.
    """
    from transformers import GenerationConfig

    if compressed.tokenizer is None:
        return
    own, found = compressed.tokenizer, load_tokenizer(folder)
    for text in texts(own):
        if own(text)["input_ids"] != found(text)["input_ids"]:
            raise RazorError(
                f"'{folder}': its tokenizer reads {text[:60]!r} as other tokens than the student's."
            )
    if own.chat_template != found.chat_template or own.eos_token_id != found.eos_token_id:
        raise RazorError(
            f"'{folder}': its tokenizer has another chat template or end of text than the student's."
        )
    meant = compressed.model.generation_config.to_diff_dict()
    kept = GenerationConfig.from_pretrained(str(folder), local_files_only=True).to_diff_dict()
    differing = {key for key in meant | kept if meant.get(key) != kept.get(key)} - {"transformers_version"}
    if differing:
        raise RazorError(
            f"'{folder}': '{min(differing)}' of its generation_config.json is not the student's."
        )
