"""Scores on real benchmarks: rows out of a package, lm-eval in memory."""

from razor.evals.harness import Benchmark
from razor.evals.rows import prepare_rows
from razor.evals.scores import Score, Scores

__all__ = ["Benchmark", "Score", "Scores", "prepare_rows"]
