"""What `razor evaluate` scores: a model, wherever it lies, and what may be said about its size.

A target knows how to open itself; scores that are known already are taken from the cache by its fingerprint, task
by task, so a command that was stopped goes on where it was, and a model whose scores are all known is not loaded.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from razor.evals.harness import Benchmark
from razor.evals.isolation import quiet, unchanged
from razor.evals.scores import Scores


@dataclass(frozen=True)
class Target:
    """One model to score.

    Attributes:
        name: for the table, as it was asked for.
        kind: transformers, packed, gguf.
        w_a_kv: widths, as in 'W2.79-A8-KV8'; '?' where nobody says.
        ratio_paper: compression by the paper's accounting; None: unknown.
        ratio_disk: compression by bytes of the tensors; None: unknown.
        bytes_disk: those bytes; None: unknown.
        fingerprint: of weights, tokenizer and what computes with them.
        tokenizer: has `chat_template`.
        open: loads it; while the context is open, it scores a benchmark.
    """

    name: str
    kind: str
    w_a_kv: str
    ratio_paper: float | None
    ratio_disk: float | None
    bytes_disk: int | None
    fingerprint: str
    tokenizer: Any
    open: Callable[[], AbstractContextManager[Callable[[Benchmark], Scores]]]

    def score(self, benchmark: Benchmark) -> Scores:
        """Scores of all tasks, in the benchmark's order; each is kept as soon as it is known."""
        found = Scores()
        with Opened(self) as opened:
            for task in benchmark.tasks:
                part = benchmark.only(task)
                found.tasks += part.cached(self.fingerprint, lambda part=part: opened.score(part)).tasks  # type: ignore[misc]
        return found


class Opened:
    """A target that is loaded when the first score is wanted of it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._context: AbstractContextManager[Callable[[Benchmark], Scores]] | None = None
        self._score: Callable[[Benchmark], Scores] | None = None

    def score(self, benchmark: Benchmark) -> Scores:
        """Load the model if need be, and score it."""
        if self._score is None:
            self._context = self.target.open()
            self._score = self._context.__enter__()
        return self._score(benchmark)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._context is not None:
            self._context.__exit__(*error)
        self._context = self._score = None
        gc.collect()


@contextmanager
def in_memory(
    load: Callable[[], tuple[Any, Any]], description: str
) -> Iterator[Callable[[Benchmark], Scores]]:
    """Open a model of Transformers' interface: `load` gives it, where it shall compute, and its tokenizer."""
    model, tokenizer = load()
    yield lambda benchmark: benchmark.score(model, tokenizer, f"{description} {benchmark.tasks[0]}")


@contextmanager
def in_llama_cpp(make: Callable[[], Any], description: str) -> Iterator[Callable[[Benchmark], Scores]]:
    """Open a GGUF: `make` gives what answers lm-eval's questions."""
    from torch import nn

    lm = make()

    def score(benchmark: Benchmark) -> Scores:
        benchmark.prepare(lm.tokenizer)
        lm.description = f"{description} {benchmark.tasks[0]}"
        with unchanged(nn.Module()), quiet():  # no module of ours, but the random states are
            return benchmark.ask(lm)

    try:
        yield score
    finally:
        lm.close()
