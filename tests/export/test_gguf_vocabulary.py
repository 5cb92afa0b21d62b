"""Tokenizers as GGUF has them: llama.cpp reads the same tokens, or the export is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from razor.errors import RazorError
from razor.export.gguf import GGUF
from razor.export.gguf.proof import TEXTS, compare_tokens
from razor.export.gguf.vocabulary import BYTE, CONTROL, SPLITS, UNUSED, USER_DEFINED, split_name, vocabulary
from razor.models import RandomModel, byte_tokenizer
from razor.models.llama_process import LlamaProcess
from razor.quant import Integer, Plan
from tests.export.gguf_models import BASE
from tests.export.hf_models import packed_by, plan_of

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
MARKS = ["<s>", "</s>", "<unk>"]
CORPUS = [*TEXTS, "the other of and that in to is was 1 12 123 1234 12345", "  two   three    four"] * 4


def byte_level(*before: Any, regex: bool) -> Tokenizer:
    """BPE on bytes, split first by `before`."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, last]) if before else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split(expression: str) -> Any:
    return pre_tokenizers.Split(Regex(expression), "isolated", invert=False)


def sentencepiece(prefix: bool) -> Tokenizer:
    """BPE as tokenizer.json has it for Llama 2 (with a space in front) and Gemma: bytes as the last resort."""
    steps = [normalizers.Prepend("▁")] if prefix else []
    normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizer
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=[*MARKS, *bytes_], show_progress=False)
    trained.train_from_iterator([text.replace("\n", " ") for text in CORPUS], trainer)
    data = json.loads(trained.to_str())
    data["model"] |= {"byte_fallback": True, "fuse_unk": True}
    data["added_tokens"] = data["added_tokens"][: len(MARKS)]  # bytes are ordinary tokens
    return Tokenizer.from_str(json.dumps(data))


TOKENIZERS: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "gpt-2": (lambda: byte_level(regex=True), "gpt-2"),
    "smollm": (lambda: byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True), "smollm"),
    "qwen2": (lambda: byte_level(split(QWEN2), regex=False), "qwen2"),
    "llama3": (lambda: byte_level(split(LLAMA3), regex=False), "llama-bpe"),
    "llama2": (lambda: sentencepiece(prefix=True), "default"),
    "gemma": (lambda: sentencepiece(prefix=False), "default"),
}


def wrapped(tokenizer: Tokenizer, **options: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    )


class Given(RandomModel):
    """A random model with a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__("given", BASE | {"model_type": "llama", "vocab_size": len(tokenizer) + 3})
        self.given = tokenizer

    def tokenizer(self) -> PreTrainedTokenizerFast:  # type: ignore[override]
        return self.given


def written(tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """A GGUF with this tokenizer."""
    source = Given(tokenizer)
    plan = plan_of(source, Integer(4, 32), Integer(4, 32))
    order = sorted(plan.modules, key=lambda name: name == "lm_head")
    compressed = packed_by(folder, source, Plan({name: plan.modules[name] for name in order}))
    exporter = GGUF(runtime=False)
    exporter.write(compressed, folder)
    (found,) = folder.glob("*.gguf")
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_llama_cpp_reads_the_same_tokens(name: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    make, pre = TOKENIZERS[name]
    tokenizer = wrapped(make())
    assert vocabulary(tokenizer, len(tokenizer)).pre == pre
    with LlamaProcess(written(tokenizer, tmp_path)) as llama:
        assert llama.vocabulary == len(tokenizer) + 3
        assert compare_tokens(llama, tokenizer) >= 8


def test_another_way_of_splitting_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the name in the file were another than the tokenizer's: digits come out differently."""
    pytest.importorskip("xllamacpp")
    tokenizer = wrapped(TOKENIZERS["llama3"][0]())
    monkeypatch.setitem(SPLITS, LLAMA3, "qwen2")
    with LlamaProcess(written(tokenizer, tmp_path)) as llama, pytest.raises(RazorError, match="other tokens"):
        compare_tokens(llama, tokenizer)


def test_marks_around_a_text_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    backend = TOKENIZERS["gpt-2"][0]()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    tokenizer = wrapped(backend)
    found = vocabulary(tokenizer, len(tokenizer) + 2)
    assert found.flags == {"add_bos_token": True, "add_eos_token": False}
    assert found.ids == {"bos_token_id": 0, "eos_token_id": 1, "unknown_token_id": 2}
    assert found.kinds[0] == CONTROL and found.kinds[-3] == USER_DEFINED and found.kinds[-1] == UNUSED
    with LlamaProcess(written(tokenizer, tmp_path)) as llama:
        assert llama.tokenize("a<tool>", special=True) == tokenizer("a<tool>")["input_ids"]
        assert llama.tokenize("a", special=True)[0] == 0 and llama.tokenize("a")[0] != 0
        compare_tokens(llama, tokenizer)


def test_scores_follow_the_merges() -> None:
    tokenizer = wrapped(TOKENIZERS["gemma"][0]())
    found = vocabulary(tokenizer, len(tokenizer))
    assert found.model == "llama" and found.merges is None and found.scores is not None
    assert found.kinds[3] == BYTE and found.flags["add_space_prefix"] is False
    assert sorted({s for s in found.scores if s > -100}, reverse=True)[:3] == [0.0, -1.0, -2.0]


def test_bytes_alone_are_read_alike_however_they_are_split() -> None:
    found = vocabulary(byte_tokenizer(), 272)
    assert found.model == "gpt2" and found.pre == "gpt-2" and len(found.tokens) == 272
    assert found.merges == ["<|endoftext|> <|im_start|>"]  # of marks, which are never merged


def test_what_llama_cpp_does_not_know_is_refused() -> None:
    with pytest.raises(RazorError, match="no BPE but WordLevel"):
        vocabulary(wrapped(Tokenizer(models.WordLevel({m: i for i, m in enumerate(MARKS)}, "<unk>"))), 10)
    with pytest.raises(RazorError, match="splits text by an expression"):
        vocabulary(wrapped(byte_level(split(r"\w+|\W+"), regex=False)), 1000)
    lower = byte_level(regex=True)
    lower.normalizer = normalizers.Lowercase()
    with pytest.raises(RazorError, match=r"changes text .*Lowercase"):
        vocabulary(wrapped(lower), 1000)
    with pytest.raises(RazorError, match="259 tokens for 100 rows"):
        vocabulary(byte_tokenizer(), 100)
    assert split_name({"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}) is None
    assert split_name(None) is None
