"""Scores are lm-eval's own, and scoring leaves no trace."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from razor.errors import RazorError
from razor.evals import Benchmark, Score, Scores
from razor.evals.packing import BRANCH_TOKENS, batches, pack, share_contexts
from razor.models.byte_tokenizer import byte_tokenizer
from razor.models.student import make_student
from razor.quant import Integer, Placement, Plan

TASKS = ["piqa", "arc_easy", "hellaswag", "lambada_openai", "sciq"]


def tiny(tie: bool = False, attention: str = "sdpa", context: int = 2048) -> LlamaForCausalLM:
    """Two layers of random weights; large ones, so that no two answers come out alike."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.3,
        tie_word_embeddings=tie,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def log_likelihoods(make: Callable[..., Any], model: Any, tokenizer: Any, requests: Any) -> Any:
    """Answers of an lm-eval model class to (context, continuation) pairs."""
    from lm_eval.api.instance import Instance

    asked = [
        Instance("loglikelihood", doc={}, arguments=pair, idx=0, metadata=("t", i, 1))
        for i, pair in enumerate(requests)
    ]
    return make(model, tokenizer).loglikelihood(asked, disable_tqdm=True)


def plain(model: Any, tokenizer: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3, softmax_dtype="float32")


def shared(model: Any, tokenizer: Any) -> Any:
    from razor.evals.shared_context import SharedContextLM

    return SharedContextLM(model, tokenizer, batch_size=3)


def test_scores_are_those_of_plain_lm_eval(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval

    model = tiny()
    benchmark = Benchmark(TASKS, limit=4)
    benchmark.prepare()
    capsys.readouterr()

    def no_network(*_: Any) -> None:
        raise AssertionError("scoring on packaged rows reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    scores = benchmark.score(model, tokenizer, "tiny model")
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.strip().split("\n")) == 1
    assert "tiny model" in printed.err

    expected = lm_eval.simple_evaluate(
        model=plain(model, tokenizer),
        tasks=list(TASKS),
        limit=4,
        num_fewshot=0,
        task_manager=benchmark._manager,
        bootstrap_iters=2,
    )["results"]
    for score in scores.tasks:
        metric = "acc" if score.task == "lambada_openai" else "acc_norm"
        assert score.metric == metric and score.rows == 4
        assert score.value == pytest.approx(100 * expected[score.task][f"{metric},none"])
        assert score.stderr == pytest.approx(100 * expected[score.task][f"{metric}_stderr,none"])
    assert scores.average == pytest.approx(sum(s.value for s in scores.tasks) / 5)
    assert Scores.from_dict(scores.to_dict()) == scores


PAIRS = [
    ("Question: why?\nAnswer:", " because"),
    ("Question: why?\nAnswer:", " of"),
    ("Question: why?\nAnswer:", " because"),
    ("Question: why?\nAnswer:", "!"),
    ("Question: why?\nAnswer:", "?"),
    ("", "no context at all"),
    ("a", "b"),
    ("long " * 60, "left end is lost"),
    ("long " * 60, "l"),
    ("ends in a space ", "and goes on"),
    *[("many answers", f" {i}" + "x" * 60) for i in range(12)],
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_log_likelihoods_equal_plain_hflm(tokenizer: Any, attention: str) -> None:
    model = tiny(context=128, attention=attention)
    expected = log_likelihoods(plain, model, tokenizer, PAIRS)
    got = log_likelihoods(shared, model, tokenizer, PAIRS)
    assert [x[0] for x in got] == pytest.approx([x[0] for x in expected], rel=1e-5, abs=1e-4)
    assert [x[1] for x in got] == [x[1] for x in expected]
    assert shared(model, tokenizer).shares_contexts() == (attention == "sdpa")


def test_a_quantized_student_is_scored_as_by_plain_hflm(tokenizer: Any) -> None:
    # In float64, so that no activation falls to the other side of a rounding edge for the order
    # in which a sum was taken; in bf16 that happens, and is noise that plain lm-eval has as well.
    model = tiny(tie=True, context=128).double()
    eight = Placement(Integer(4, 32), Integer(8, 32))
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    places = dict.fromkeys(names, eight) | {"model.embed_tokens": Placement(Integer(4, 32))}
    student = make_student(model, Plan(places, kv_cache=Integer(8, 16)), torch.float64)
    expected = log_likelihoods(plain, student, tokenizer, PAIRS)
    got = log_likelihoods(shared, student, tokenizer, PAIRS)
    unquantized = log_likelihoods(shared, model, tokenizer, PAIRS)
    assert shared(student, tokenizer).shares_contexts()
    assert [x[0] for x in got] == pytest.approx([x[0] for x in expected], rel=1e-5, abs=1e-4)
    assert [x[0] for x in got] != pytest.approx([x[0] for x in unquantized], rel=1e-2)


def test_greedy_answers_are_recognised(tokenizer: Any) -> None:
    model = tiny()
    ids = tokenizer("Once upon", return_tensors="pt").input_ids
    best = tokenizer.decode(model(ids).logits[0, -1, :256].argmax())
    greedy = [x[1] for x in log_likelihoods(shared, model, tokenizer, [("Once upon", best)])]
    assert greedy == [x[1] for x in log_likelihoods(plain, model, tokenizer, [("Once upon", best)])]


def test_packed_answers_do_not_see_each_other() -> None:
    requests = [(None, [1, 2], [3, 4, 5]), (None, [1, 2], [6]), (None, [1, 2], [7, 8])]
    (row,) = share_contexts(requests, max_length=100)
    packed = pack([row], torch.device("cpu"))
    assert packed.tokens.tolist() == [[1, 2, 3, 4, 7]]
    assert packed.positions.tolist() == [[0, 1, 2, 3, 2]]
    assert packed.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert packed.where.tolist() == [1, 2, 3, 1, 1, 4]
    assert packed.targets.tolist() == [3, 4, 5, 6, 7, 8]


def test_rows_stay_short_and_batches_even() -> None:
    requests = [(None, [0], [1] * 200) for _ in range(9)] + [(None, [2] * 50, [1])] * 5
    rows = share_contexts(requests, max_length=1000)
    assert max(len(row) for row in rows) <= 1 + BRANCH_TOKENS
    assert sorted(i for row in rows for i, _ in row.answers) == list(range(14))
    for batch in batches(rows, 4):
        assert len(batch) <= 4 and len(batch[0]) <= 1.5 * len(batch[-1])
    assert sum(len(batch) for batch in batches(rows, 4)) == len(rows)


def test_scoring_changes_nothing(tokenizer: Any) -> None:
    model = tiny(tie=True)
    # A student may keep a head of its own although its config says "tied": it must stay that way.
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = (random.random(), np.random.rand(), torch.rand(1))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    Benchmark(["piqa"], limit=1).score(model, tokenizer)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert [module.training for module in model.modules()] == modes
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.is_grad_enabled()
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not model.lm_head._forward_pre_hooks


def test_one_row_has_no_standard_error(tokenizer: Any) -> None:
    (score,) = Benchmark(["sciq"], limit=1).score(tiny(), tokenizer).tasks
    assert score.stderr is None and score.rows == 1


def test_key_covers_what_shapes_a_score() -> None:
    first = Benchmark(["piqa"], limit=4)
    others = [
        Benchmark(["piqa"], limit=5),
        Benchmark(["piqa"]),
        Benchmark(["sciq"], limit=4),
        Benchmark(["piqa"], limit=4, rows="hub"),
        Benchmark(["piqa"], limit=4, apply_chat_template=True),
    ]
    keys = {benchmark.key("model") for benchmark in [first, *others]} | {first.key("other")}
    assert len(keys) == 7
    assert Benchmark(["piqa"], limit=4, batch_size=7).key("model") == first.key("model")


def test_scores_are_cached_and_damage_is_said(
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark = Benchmark(["piqa"], limit=2)
    made: list[Scores] = []

    def score(*_: Any) -> Scores:
        made.append(Scores([Score("piqa", "acc_norm", 50.0 + len(made), None, 2)]))
        return made[-1]

    monkeypatch.setenv("RAZOR_CACHE", str(tmp_path))
    monkeypatch.setattr(benchmark, "score", score)
    model = tiny()
    first = benchmark.score_cached(model, tokenizer, "fingerprint")
    assert benchmark.score_cached(model, tokenizer, "fingerprint") == first and len(made) == 1
    path = tmp_path / "scores" / f"{benchmark.key('fingerprint')}.json"
    path.write_text(path.read_text().replace("50.0", "99.0"))
    assert benchmark.score_cached(model, tokenizer, "fingerprint") == made[1]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "amaged" in said[0]
    assert benchmark.score_cached(model, tokenizer, "fingerprint") == made[1]


def test_no_tasks_means_no_scores(tokenizer: Any) -> None:
    benchmark = Benchmark([])
    benchmark.prepare()
    scores = benchmark.score(tiny(), tokenizer)
    assert scores.tasks == [] and scores.average is None
    assert benchmark.score_cached(tiny(), tokenizer, "x") == scores


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"limit": 0}, "evals.limit=0"),
        ({"limit": 0.5}, "evals.limit=0.5"),
        ({"limit": True}, "evals.limit=True"),
        ({"batch_size": 0}, "evals.batch_size=0"),
        ({"num_fewshot": -1}, "evals.num_fewshot=-1"),
        ({"num_fewshot": 5}, "rows=hub"),
        ({"rows": "disk"}, "Choices: hub, package"),
        ({"tasks": ["piqa", "piqa"]}, "twice"),
    ],
)
def test_bad_values_are_told_at_once(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RazorError, match=message) as error:
        Benchmark(**{"tasks": ["piqa"], **values})
    assert "\n" not in str(error.value)


def test_bad_tasks_are_told_before_any_work() -> None:
    with pytest.raises(RazorError, match="Did you mean 'hellaswag'"):
        Benchmark(["helaswag"]).prepare()
    with pytest.raises(RazorError, match="no chat template"):
        Benchmark(["piqa"], apply_chat_template=True).prepare(byte_tokenizer(chat=False))
