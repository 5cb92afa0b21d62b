"""A packed model that was read again scores as the student does, to the last example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import razor
from razor import cli
from razor.evals.harness import Benchmark
from razor.evals.shared_context import SharedContextLM
from razor.recipe import Recipe


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["w4", "mixed_1p88"])
def test_every_example_scores_the_same(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2, real rows, lm-eval; log-likelihoods of every answer, not only their means."""
    config = cli.composed("quantize", [f"quant={quant}", f"out={tmp_path}"])
    source = cli.model_source(config)
    student = razor.quantize(source.load(torch.bfloat16), Recipe("test", cli.build(config.quant))).eval()
    razor.save(student, source.tokenizer(), tmp_path / "packed")
    reloaded, tokenizer = razor.load(tmp_path / "packed")
    answers: list[list[Any]] = []
    original = SharedContextLM.loglikelihood

    def watched(self: Any, requests: Any, *rest: Any, **more: Any) -> Any:
        answers.append(original(self, requests, *rest, **more))
        return answers[-1]

    monkeypatch.setattr(SharedContextLM, "loglikelihood", watched)
    benchmark = Benchmark(["sciq", "piqa", "lambada_openai"], limit=12)
    scores = [benchmark.score(model, tokenizer) for model in (student, reloaded)]
    half = len(answers) // 2
    assert half and answers[:half] == answers[half:]
    assert scores[0] == scores[1]
