"""Numbers from tokens: formulas by hand, spans by hand, and intervals that cover what they promise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mixprec.evaluate import metrics
from mixprec.evaluate.passages import Material, Passage
from mixprec.numerics.divergence import TokenFidelity
from mixprec.traces.spans import TokenSpan
from mixprec.traces.store import BEHAVIOURS


def result(
    kl: Sequence[float], nll: Sequence[float] | None = None, agree: Sequence[bool] | None = None
) -> TokenFidelity:
    return TokenFidelity(
        torch.tensor(kl if nll is None else nll, dtype=torch.float64),
        torch.tensor(kl, dtype=torch.float64),
        torch.tensor([True] * len(kl) if agree is None else agree, dtype=torch.bool),
    )


def test_formulas() -> None:
    found = metrics.summarise(
        [result([0.0, 1.0], [math.log(2), math.log(8)], [True, False]), result([5.0], [math.log(4)], [False])]
    )
    assert found is not None
    assert (found["tokens"], found["passages"]) == (3, 2)
    assert found["perplexity"] == pytest.approx(4)
    assert found["kl_mean"] == pytest.approx(2)
    assert found["kl_median"] == 1
    assert found["kl_p99"] == pytest.approx(np.quantile([0, 1, 5], 0.99))
    assert found["top1_agreement"] == pytest.approx(1 / 3)
    low, high = found["kl_mean_ci"]
    assert (low, high) == (0.5, 5)  # the means when one passage is drawn twice


def test_tokens_weigh_the_same_in_short_and_long_passages() -> None:
    parts = [result([1.0] * 9), result([11.0])]
    assert metrics.summarise(parts)["kl_mean"] == pytest.approx(2)  # type: ignore[index]


def test_nothing_measured() -> None:
    assert metrics.summarise([]) is None
    assert metrics.summarise([result([])]) is None
    alone = metrics.summarise([result([1.0, 2.0]), result([])])
    assert alone is not None
    assert (alone["passages"], alone["kl_mean_ci"]) == (1, None)


def per_behaviour(length: int, *spans: TokenSpan) -> dict[str, list[float]]:
    """KL per behaviour where the KL of the prediction of token t is 2 ** t, so that a sum tells which tokens."""
    kl = [2.0**t for t in range(1, length)]
    found = metrics.per_behaviour([Passage(torch.arange(length), spans)], [result(kl, [0.0] * len(kl))])
    assert tuple(found) == BEHAVIOURS
    tokens = {}
    for behaviour, row in found.items():
        total = round(row["kl_mean"] * row["tokens"]) if row else 0
        tokens[behaviour] = [t for t in range(length) if total >> t & 1]
    return tokens


def test_a_span_counts_the_predictions_of_its_own_tokens() -> None:
    found = per_behaviour(9, TokenSpan("backtracking", 3, 5), TokenSpan("deduction", 1, 9))
    assert found["backtracking"] == [3, 4]
    assert found["adding_knowledge"] == []


def test_a_token_in_two_spans_of_a_behaviour_counts_once() -> None:
    found = per_behaviour(
        9, TokenSpan("backtracking", 3, 6), TokenSpan("backtracking", 5, 8), TokenSpan("example_testing", 5, 6)
    )
    assert found["backtracking"] == [3, 4, 5, 6, 7]
    assert found["example_testing"] == [5]


def test_the_first_token_is_predicted_by_nothing() -> None:
    assert per_behaviour(5, TokenSpan("backtracking", 0, 2))["backtracking"] == [1]
    assert per_behaviour(5, TokenSpan("backtracking", 0, 1))["backtracking"] == []
    assert per_behaviour(5, TokenSpan("backtracking", 0, 5))["backtracking"] == [1, 2, 3, 4]


def test_intervals_cover_the_mean() -> None:
    """Passages of unequal length whose tokens depend on one another: the interval still covers about 95%."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        sizes = generator.integers(5, 50, size=30)
        offsets = generator.exponential(1.0, size=30)
        sums = [
            float(offset * size + generator.normal(0, 1, size).sum())
            for offset, size in zip(offsets, sizes, strict=True)
        ]
        low, high = metrics.bootstrap_mean(sums, sizes.tolist())  # type: ignore[misc]
        covered += low <= 1.0 <= high
    assert 0.87 <= covered / 200 <= 0.99


def test_degenerate_intervals() -> None:
    assert metrics.bootstrap_mean([3.0], [2]) is None
    assert metrics.bootstrap_mean([], []) is None
    assert metrics.bootstrap_mean([2.0, 6.0, 4.0], [1, 3, 2]) == pytest.approx([2, 2])
    assert metrics.bootstrap_mean([0.0] * 4, [5] * 4) == [0.0, 0.0]


def test_intervals_are_the_same_every_time_and_follow_the_unit() -> None:
    sums, sizes = [1.0, 4.0, 2.0, 7.0], [2, 3, 4, 5]
    found = metrics.bootstrap_mean(sums, sizes)
    assert found == metrics.bootstrap_mean(sums, sizes)
    assert metrics.bootstrap_mean([10 * s for s in sums], sizes) == pytest.approx([10 * bound for bound in found or []])


def test_paired_differences_ignore_what_passages_share() -> None:
    generator = np.random.default_rng(0)
    hard = generator.exponential(10, size=12)
    first = [{"tokens": 10, "kl_sum": float(h + 1 + generator.normal(0, 0.1))} for h in hard]
    second = [{"tokens": 10, "kl_sum": float(h)} for h in hard]
    found, reverse = metrics.kl_difference(first, second), metrics.kl_difference(second, first)
    assert found["kl_difference"] == pytest.approx(0.1, abs=0.01)
    assert 0.09 < found["ci"][0] < found["ci"][1] < 0.11
    assert reverse["kl_difference"] == pytest.approx(-found["kl_difference"])
    assert reverse["ci"] == pytest.approx([-found["ci"][1], -found["ci"][0]], abs=1e-3)
    assert metrics.kl_difference(first, first) == {"kl_difference": 0.0, "ci": [0.0, 0.0]}


def test_traces_and_texts_are_kept_apart() -> None:
    spans = (TokenSpan("backtracking", 1, 2),)
    on_traces, on_text = [Passage(torch.arange(3), spans)], [Passage(torch.arange(2)), Passage(torch.arange(4))]
    results = [result([1.0, 2.0]), result([7.0]), result([8.0, 9.0, 10.0])]
    found = metrics.evaluate_all(Material(on_traces, on_text, Counter()), results)
    assert (found["traces"]["kl_mean"], found["text"]["kl_mean"]) == (1.5, 8.5)
    assert found["behaviours"]["backtracking"]["kl_mean"] == 1
    assert found["kl_by_passage"] == [{"tokens": 2, "kl_sum": 3.0}]
    only_text = metrics.evaluate_all(Material([], on_text, Counter()), results[1:])
    assert only_text["traces"] is None
    assert only_text["kl_by_passage"] == [{"tokens": 1, "kl_sum": 7.0}, {"tokens": 3, "kl_sum": 27.0}]
