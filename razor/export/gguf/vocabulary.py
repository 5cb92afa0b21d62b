"""A tokenizer as GGUF has it: tokens, kinds, merges, and which way of splitting text.

llama.cpp reads two kinds of tokenizer that our models have, and needs no file of theirs:

- `gpt2`: byte-level BPE. Text is first cut by a regular expression, which llama.cpp knows by name
  (`tokenizer.ggml.pre`), not by its text; we look at what the tokenizer splits by and find the name. Another
  expression would give other tokens for a few texts in a thousand, so one that is not in the table is refused.
- `llama`: SentencePiece's BPE with bytes as the last resort (Llama 2, Gemma). It goes by scores of tokens; in a
  tokenizer that has merges instead, the rank of the merge that makes a token says the same.

Whatever is chosen here is then compared in llama.cpp itself, text by text (`razor.export.gguf.proof`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from razor.errors import RazorError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of tokens (llama.h, llama_token_type)."""

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {WORDS + r"\p{N}" + REST: "qwen2", WORDS + r"\p{N}{1,3}" + REST: "llama-bpe"}
"""Regular expressions of pre-tokenizers, and what llama.cpp calls them."""

BYTE_LEVEL, DIGITS = "gpt-2", "smollm"
"""The expression of GPT-2, which `ByteLevel` brings along; the same with every digit apart."""

NEVER_APPLIES = "{0} {1}"
"""A merge of two marks: llama.cpp wants at least one, and marks are taken out of a text before merging."""


@dataclass(frozen=True)
class Vocabulary:
    """What goes below `tokenizer.ggml.`.

    Attributes:
        model: "gpt2" or "llama".
        pre: llama.cpp's name of the way text is split.
        tokens: one for each row of the embedding.
        kinds: of the tokens.
        scores: of the tokens, for "llama"; else None.
        merges: for "gpt2"; else None.
        flags: whether something is put in front of, or behind, a text.
        ids: of special tokens.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    scores: Sequence[float] | None
    merges: Sequence[str] | None
    flags: Mapping[str, bool]
    ids: Mapping[str, int]


def vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer, for an embedding of so many rows.

    Raises:
        RazorError: it is not of a kind that llama.cpp knows.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused(tokenizer, "it has no tokenizer.json")
    data = json.loads(backend.to_str())
    model = data["model"]
    if model.get("type") != "BPE":
        raise _refused(tokenizer, f"it is no BPE but {model.get('type')}")
    if rows < len(tokenizer):
        raise _refused(tokenizer, f"it has {len(tokenizer)} tokens for {rows} rows of the embedding")
    tokens, kinds = _tokens(data, rows)
    pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in model["merges"]]
    flags, ids = _around(tokenizer), _ids(tokenizer)
    if model.get("byte_fallback"):
        flags |= {"add_space_prefix": _prefixed(data)}
        if data.get("normalizer") is None and data.get("pre_tokenizer") is None:
            raise _refused(tokenizer, "it does not mark spaces as SentencePiece does")
        for token, index in model["vocab"].items():
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                kinds[index] = BYTE
        if (unknown := model["vocab"].get(model.get("unk_token"))) is not None:
            kinds[unknown] = UNKNOWN
        return Vocabulary("llama", "default", tokens, kinds, _scores(pairs, tokens), None, flags, ids)
    changed = (data.get("normalizer") or {}).get("type", "NFC")
    if changed != "NFC":  # llama.cpp leaves decomposed characters alone, and changes nothing else either
        raise _refused(tokenizer, f"it changes text before it splits it ({changed})")
    merges = [" ".join(pair) for pair in pairs]
    if not merges:
        marks = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
        merges = [NEVER_APPLIES.format(*(marks * 2))] if marks else []
    pre = split_name(data.get("pre_tokenizer"), bool(pairs))
    if pre is None or not merges:
        raise _refused(tokenizer, "it splits text by an expression that Razor knows no name for in llama.cpp")
    return Vocabulary("gpt2", pre, tokens, kinds, None, merges, flags, ids)


def _refused(tokenizer: Any, why: str) -> RazorError:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return RazorError(
        f"The tokenizer '{name}' cannot be written as GGUF: {why}. Known are byte-level BPE as in GPT-2, SmolLM, "
        "Qwen2 and Llama 3, and SentencePiece BPE as in Llama 2 and Gemma; export=[packed] or [dense] takes any."
    )


def _tokens(data: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """A token and its kind for every row; rows that no token uses are filled."""
    tokens = [f"[unused{index}]" for index in range(rows)]
    kinds = [UNUSED] * rows
    for token, index in data["model"]["vocab"].items():
        tokens[index], kinds[index] = token, NORMAL
    for added in data.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def split_name(pre: Mapping[str, Any] | None, merges: bool = True) -> str | None:
    """llama.cpp's name for what a `pre_tokenizer` of tokenizer.json does; None if it has none.

    Args:
        pre: the section.
        merges: whether the tokenizer merges anything; otherwise every byte is a token, however text is split.
    """
    if pre is None:
        return None
    steps = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    last = steps[-1]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not merges:
        return BYTE_LEVEL
    before = steps[:-1]
    if last.get("use_regex", True):
        if not before:
            return BYTE_LEVEL
        digits = len(before) == 1 and before[0]["type"] == "Digits" and before[0]["individual_digits"]
        return DIGITS if digits else None
    if len(before) != 1 or before[0]["type"] != "Split" or before[0].get("behavior") != "Isolated":
        return None
    return SPLITS.get(before[0]["pattern"].get("Regex"))


def _prefixed(data: Mapping[str, Any]) -> bool:
    """Whether a text gets a space in front: by a Prepend normalizer or a Metaspace pre-tokenizer."""
    normalizer, pre = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *pre.get("pretokenizers", [pre])]
    return any(
        step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps
    )


def _scores(pairs: Sequence[Sequence[str]], tokens: Sequence[str]) -> list[float]:
    """A token's score is minus the rank of the first merge that makes it; what no merge makes comes last."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    return [-float(ranks.get(token, len(pairs))) for token in tokens]


def _around(tokenizer: Any) -> dict[str, bool]:
    """Whether the tokenizer puts its marks around a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    first, last = (
        len(whole) > len(bare) and whole[0] != bare[0],
        len(whole) > len(bare) and whole[-1] != bare[-1],
    )
    return {
        "add_bos_token": first and whole[0] == tokenizer.bos_token_id,
        "add_eos_token": last and whole[-1] == tokenizer.eos_token_id,
    }


def _ids(tokenizer: Any) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {gguf: getattr(tokenizer, f"{own}_token_id", None) for own, gguf in names.items()}
    return {f"{name}_token_id": int(index) for name, index in found.items() if index is not None}
