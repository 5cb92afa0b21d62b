"""Scores on real benchmarks: rows out of a package, lm-eval in memory; of image classifiers on held-out images."""

from razor.evals.classification import Classification
from razor.evals.harness import Benchmark
from razor.evals.rows import prepare_rows
from razor.evals.scores import Score, Scores

__all__ = ["Benchmark", "Classification", "Score", "Scores", "prepare_rows"]
