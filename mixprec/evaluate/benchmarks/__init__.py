"""The paper's benchmarks: questions with the exact prompts, from local files or the hub."""

from __future__ import annotations

from mixprec.evaluate.benchmarks.catalogue import BENCHMARKS, digest, find, is_papers
from mixprec.evaluate.benchmarks.loading import load
from mixprec.evaluate.benchmarks.retrieval import Retrieval
from mixprec.evaluate.benchmarks.schema import THINK, Benchmark, Question

__all__ = [
    "BENCHMARKS",
    "THINK",
    "Benchmark",
    "Question",
    "Retrieval",
    "digest",
    "find",
    "is_papers",
    "load",
]
