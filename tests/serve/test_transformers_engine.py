"""Answers of a packed folder, on a tiny random model."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from razor.errors import RazorError
from razor.serve.answer import Answer, Settings
from razor.serve.transformers_engine import TransformersEngine, tensor_bytes

ASKED = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def engine(packed: Path) -> TransformersEngine:
    return TransformersEngine.open(packed, "tiny", packed=True)


def last(engine: TransformersEngine, messages: Any = ASKED, **settings: Any) -> Answer:
    return list(engine.answer(messages, Settings(**settings)))[-1]


def test_the_same_seed_says_the_same(engine: TransformersEngine) -> None:
    said = [last(engine, max_new_tokens=12, seed=seed).text for seed in (1, 1, 2, 3)]
    assert said[0] == said[1] and len(set(said)) > 1
    greedy = [last(engine, max_new_tokens=12, temperature=0.0, seed=seed).text for seed in (1, 2)]
    assert greedy[0] == greedy[1]


def test_greedy_is_what_generate_says(engine: TransformersEngine) -> None:
    found = last(engine, max_new_tokens=10, temperature=0)
    inputs = engine.tokenizer.apply_chat_template(
        ASKED, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = engine.model.generate(**inputs, max_new_tokens=10, do_sample=False)
    made = out[0, inputs["input_ids"].shape[1] :]
    assert found.text == engine.tokenizer.decode(made, skip_special_tokens=True)
    assert found.tokens == len(made)
    ends = engine._ends()
    assert found.ended == ("end" if int(made[-1]) in ends else "length")


def test_stop_ends_between_two_tokens(engine: TransformersEngine) -> None:
    engine_stop, found = threading.Event(), []
    for answer in engine.answer(ASKED, Settings(max_new_tokens=100, temperature=0), engine_stop):
        found.append(answer)
        if answer.tokens >= 3:
            engine_stop.set()
    assert found[-1].ended == "stopped" and found[-1].tokens < 100


def test_a_conversation_longer_than_the_model_reads(engine: TransformersEngine) -> None:
    context = engine._context()
    with pytest.raises(RazorError, match=f"'tiny' reads {context}: start a new one"):
        last(engine, [{"role": "user", "content": "x" * (context + 10)}])
    nearly = engine.tokenizer("y", add_special_tokens=False)["input_ids"]
    assert len(nearly) == 1
    template = last(engine, [{"role": "user", "content": "y"}], max_new_tokens=1)
    assert template.tokens == 1
    prompt = engine.tokenizer.apply_chat_template(ASKED, add_generation_prompt=True)["input_ids"]
    room = context - len(prompt) + len("Hello")
    answer = last(engine, [{"role": "user", "content": "y" * (room - 3)}], max_new_tokens=50, temperature=0)
    assert answer.tokens <= 3  # what is left of the context


def test_goes_on_with_text_where_there_is_no_chat_template(packed: Path) -> None:
    engine = TransformersEngine.open(packed, "tiny", packed=True)
    engine.tokenizer.chat_template = None
    inputs = engine._inputs(
        [{"role": "user", "content": "no"}, {"role": "user", "content": "Once"}], Settings()
    )
    assert engine.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == "Once"
    assert last(engine, max_new_tokens=4).tokens == 4 or last(engine, max_new_tokens=4).ended == "end"


def test_model_bytes_are_those_of_its_tensors(engine: TransformersEngine) -> None:
    kept = sum(t.numel() * t.element_size() for t in engine.model.state_dict().values())
    assert engine.model_bytes == tensor_bytes(engine.model) >= kept
    assert last(engine, max_new_tokens=2).model_bytes == engine.model_bytes


def test_closed(packed: Path) -> None:
    engine = TransformersEngine.open(packed, "tiny", packed=True)
    engine.close()
    with pytest.raises(RazorError, match="'tiny' was closed"):
        last(engine)


def test_a_dense_folder(packed: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(packed)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert last(TransformersEngine.open(tmp_path, "dense", packed=False), max_new_tokens=3).tokens > 0
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RazorError, match="Transformers cannot load"):
        TransformersEngine.open(tmp_path, "dense", packed=False)


def test_a_template_that_refuses_is_told_in_a_line(packed: Path) -> None:
    engine = TransformersEngine.open(packed, "tiny", packed=True)
    told = [{"role": "system", "content": "Be brief."}, *ASKED]
    engine.tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(RazorError, match="chat template of 'tiny' fails: System role not supported"):
        last(engine, told)
    assert last(engine, max_new_tokens=1).tokens == 1
    engine.tokenizer.chat_template = "{% for %}"
    with pytest.raises(RazorError, match="chat template of 'tiny' fails"):
        last(engine)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_damage_without_checksums_is_told_in_a_line(packed: Path, tmp_path: Path, name: str) -> None:
    """Each library that reads a folder has its own kind of error."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=300, **shape)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(packed).save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"\xff" * 64)
    with pytest.raises(RazorError, match=f"Transformers cannot load '{tmp_path}': "):
        TransformersEngine.open(tmp_path, "dense", packed=False)


def test_closing_while_it_writes(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine.open(packed, "tiny", packed=True)
    engine.model.generation_config.eos_token_id = None  # only being told to ends it
    monkeypatch.setattr(engine, "_context", lambda: 1 << 30)
    growing = engine.answer(ASKED, Settings(max_new_tokens=100_000, temperature=0))
    next(growing)
    engine.close()  # and the reader has not come back
    assert engine.model is None
    last = list(growing)[-1]
    assert last.ended == "stopped" and last.tokens < 100_000


def test_numbers_that_are_none_are_told_in_a_line(packed: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokenizer = AutoTokenizer.from_pretrained(packed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(RazorError, match=r"'broken' cannot answer: .*nan"):
        last(TransformersEngine(model, tokenizer, "broken"))
