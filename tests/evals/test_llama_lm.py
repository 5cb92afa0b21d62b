"""llama.cpp answers lm-eval's questions as Transformers does on the same weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from razor.errors import RazorError
from razor.evals import Benchmark
from razor.evals.gguf_facts import GGUFFacts
from razor.evals.llama_lm import LlamaLM, common_start, log_softmax
from razor.evals.shared_context import SharedContextLM
from tests.evals.test_harness import PAIRS
from tests.export.gguf_models import WIDE, packed_in, random_model

pytest.importorskip("xllamacpp")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LlamaLM, Any, Any]]:
    """A tiny model with 16-bit weights: in llama.cpp, in Transformers (fp32), and its tokenizer."""
    from razor.export.gguf import GGUF
    from razor.export.loaded import bare_model
    from razor.quant import Float16

    folder = tmp_path_factory.mktemp("gguf")
    compressed = packed_in(folder, WIDE, Float16("float16"), Float16("float16"))
    GGUF(runtime=False).write(compressed, folder)
    (path,) = folder.glob("*.gguf")
    lm = LlamaLM(path, GGUFFacts.of(path), context=400, kv="f16")
    yield lm, bare_model(compressed, torch.float32), compressed.tokenizer
    lm.close()


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, pair, 0, ("t", i, 1)) for i, pair in enumerate(arguments)]


def test_what_the_file_says(both: tuple[LlamaLM, Any, Any]) -> None:
    lm, _, tokenizer = both
    assert lm.facts.parameters == sum(p.numel() for p in random_model(WIDE).skeleton().parameters())
    assert lm.facts.bytes == pytest.approx(2 * lm.facts.parameters, rel=0.01)  # norms have 32 bits
    assert lm.facts.reads == 512 and lm.longest == 400
    assert (lm.facts.bos_text, lm.facts.eos_text) == (tokenizer.bos_token, tokenizer.eos_token)
    assert lm.prefix_token_id == tokenizer.bos_token_id and lm.eot_token_id == tokenizer.eos_token_id
    with pytest.raises(RazorError, match="no GGUF file"):
        GGUFFacts.of(Path(__file__))


def test_log_likelihoods_are_those_of_transformers(both: tuple[LlamaLM, Any, Any]) -> None:
    lm, model, tokenizer = both
    twin = SharedContextLM(model, copy.deepcopy(tokenizer), batch_size=4)
    asked = requests("loglikelihood", PAIRS)
    expected, got = twin.loglikelihood(asked, True), lm.loglikelihood(asked, True)
    assert [x[0] for x in got] == pytest.approx([x[0] for x in expected], rel=2e-3, abs=0.02)
    assert [x[1] for x in got] == [x[1] for x in expected]


def test_what_was_read_is_not_read_again(
    both: tuple[LlamaLM, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, original = both[0], both[0]._llama.logits
    seen: list[tuple[int, int]] = []

    def watched(tokens: Any, first: int = 0, kept: int = 0) -> Any:
        found = original(tokens, first, kept)
        assert np.abs(found - original(tokens, first, 0)).max() < 1e-2
        original(tokens, first, 0)
        seen.append((len(tokens), kept))
        return found

    monkeypatch.setattr(lm._llama, "logits", watched)
    lm.loglikelihood(
        requests("loglikelihood", [("a question, ", f"and {word}") for word in ("one", "two")]), True
    )
    assert seen[0][1] < seen[1][1] == len("a question, ") - 2  # the space goes with the answer


def test_written_answers_are_greedy_and_end_where_they_shall(both: tuple[LlamaLM, Any, Any]) -> None:
    lm, model, tokenizer = both
    ids = tokenizer("Once upon", return_tensors="pt").input_ids
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :])
    stop = expected[5]
    asked = [("Once upon", {"max_gen_toks": 12, "until": until}) for until in ([], [stop])]
    whole, cut = lm.generate_until(requests("generate_until", asked))
    assert whole[:6] == expected[:6]
    assert cut == whole.split(stop)[0]
    with pytest.raises(RazorError, match="answers of up to 400 tokens"):
        lm.generate_until(requests("generate_until", [("a", {"max_gen_toks": 400})]))


def test_conversations_are_written_as_the_tokenizer_does(both: tuple[LlamaLM, Any, Any]) -> None:
    lm, _, tokenizer = both
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I am"}]
    for count, generate in ((1, True), (2, False)):
        assert lm.apply_chat_template(talk[:count], generate) == tokenizer.apply_chat_template(
            talk[:count], tokenize=False, add_generation_prompt=generate, continue_final_message=not generate
        )


def test_a_benchmark_on_both(both: tuple[LlamaLM, Any, Any]) -> None:
    lm, model, tokenizer = both
    benchmark = Benchmark(["sciq", "social_iqa"], limit=6)
    expected = benchmark.score(model, tokenizer)
    found = benchmark.ask(lm)
    for one, other in zip(found.tasks, expected.tasks, strict=True):
        assert (one.task, one.metric, one.rows) == (other.task, other.metric, other.rows)
        assert abs(one.value - other.value) < 100 / 6 + 1e-6  # one row may lie on the edge


def test_small_parts() -> None:
    assert common_start([1, 2, 3], [1, 2, 4, 5]) == 2 and common_start([], [1]) == 0
    logits = np.array([[1000.0, 999.0]], np.float32)
    assert np.exp(log_softmax(logits)).sum() == pytest.approx(1)
