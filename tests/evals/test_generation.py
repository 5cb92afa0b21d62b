"""Answers that are written out: by a student with A8 and KV8, as it would be run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from razor.evals import Benchmark
from razor.evals.ifeval_needs import prepare_ifeval
from razor.evals.shared_context import SharedContextLM
from razor.models import kv_cache
from razor.models.byte_tokenizer import byte_tokenizer
from razor.models.kv_layers import StoredLayer
from razor.models.student import make_student
from razor.quant import Integer, Placement, Plan
from tests.evals.test_harness import tiny


def student_of(model: Any, kv: Integer | None) -> Any:
    """W4-A8, keys and values as given, in float64: no code flips for the order of a sum."""
    four = Placement(Integer(4, 32), Integer(8, 32))
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    places = dict.fromkeys(names, four) | {"model.embed_tokens": Placement(Integer(4, 32))}
    return make_student(model, Plan(places, kv_cache=kv), torch.float64).eval()


def written(model: Any, tokens: int) -> str:
    from lm_eval.api.instance import Instance

    lm = SharedContextLM(model, byte_tokenizer(), batch_size=2)
    asked = Instance("generate_until", {}, ("Question: why?", {"max_gen_toks": tokens, "until": []}), 0)
    return lm.generate_until([asked], disable_tqdm=True)[0]


def test_keys_and_values_are_kept_in_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = kv_cache.quant_cache

    def watched(model: Any) -> Any:
        made.append(original(model))
        return made[-1]

    monkeypatch.setattr(kv_cache, "quant_cache", watched)
    student = student_of(tiny().double(), Integer(8, 16))
    made.clear()  # quantizing looks once whether there can be one
    got = written(student, 24)
    (cache,) = made
    assert all(isinstance(layer, StoredLayer) for layer in cache.layers)
    assert cache.get_seq_length() >= len("Question: why?") + 8
    # the same greedily by hand: whole passes, in which attention rounds keys and values itself
    tokenizer = byte_tokenizer()
    ids = tokenizer("Question: why?", return_tensors="pt").input_ids
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(24):
            logits = student(input_ids=ids, use_cache=False).logits[0, -1]
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
            if int(ids[0, -1]) == tokenizer.eos_token_id:
                break
    assert got == tokenizer.decode(ids[0, start:], skip_special_tokens=True) and len(got) > 4
    made.clear()
    written(student_of(tiny().double(), None), 2)
    assert made == []


def test_a_task_with_written_answers_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """gsm8k without examples: each answer right by a model that has been told them."""
    benchmark = Benchmark(["gsm8k"], limit=3, pinned={"gsm8k": {"metric": "exact_match,strict-match"}})
    monkeypatch.setattr(
        SharedContextLM,
        "generate_until",
        lambda self, requests, **_: [request.doc["answer"] for request in requests],
    )
    (score,) = benchmark.score(tiny(), byte_tokenizer()).tasks
    assert (score.metric, score.value, score.rows) == ("exact_match,strict-match", 100.0, 3)


def test_ifeval_judges_by_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """No commas, highlights, 300 words; sentences are counted by nltk's splitter, which needs no web."""
    import nltk

    prepare_ifeval()
    sentences = nltk.data.load("nltk:tokenizers/punkt/english.pickle").tokenize("Mr. Smith came. He left.")
    assert sentences == ["Mr. Smith came.", "He left."]
    good = "*a* *b* *c* " + "word " * 310

    def answer(self: Any, requests: Any, **_: Any) -> list[str]:
        assert requests[0].args[0].startswith("<|im_start|>user\n")  # the chat template
        return [good if request.doc["key"] == 1000 else "" for request in requests]

    monkeypatch.setattr(SharedContextLM, "generate_until", answer)
    pinned = {"ifeval": {"chat_template": True, "metric": "prompt_level_strict_acc", "version": "4.0"}}
    (score,) = Benchmark(["ifeval"], limit=2, pinned=pinned).score(tiny(), byte_tokenizer()).tasks
    assert (score.metric, score.value, score.rows) == ("prompt_level_strict_acc", 50.0, 2)


@pytest.mark.slow
def test_a_group_is_the_mean_over_its_rows() -> None:
    """MMLU: 57 subjects, one score."""
    from tests.evals.stand_in import FirstChoice

    benchmark = Benchmark(["mmlu"], limit=7)
    benchmark.prepare()
    lm = FirstChoice()
    (score,) = benchmark.ask(lm).tasks
    from razor.evals.lm_tasks import loaded

    tasks = loaded(benchmark._manager, benchmark.described)["tasks"]
    rows = [doc for task in tasks.values() for doc in list(task.eval_docs)[:7]]
    right = sum(doc["answer"] == 0 for doc in rows)
    assert score.rows == len(rows) == 57 * 7
    assert score.value == pytest.approx(100 * right / len(rows)) and 0 < score.stderr < 5
    assert copy.copy(benchmark).only("mmlu").tasks == ["mmlu"]
