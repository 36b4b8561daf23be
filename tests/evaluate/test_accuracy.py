"""Statistics against enumeration and simulation."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixprec.evaluate import accuracy, metrics
from mixprec.evaluate.accuracy import Sample

answers = st.sampled_from(["A", "B", "C", None])


def samples_of(given_answers: list[str | None], gold: str = "A") -> list[Sample]:
    return [Sample(float(answer == gold), answer == gold, answer) for answer in given_answers]


def test_mean_over_seeds_and_questions() -> None:
    table = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]
    found = accuracy.mean_of(table)
    assert found["mean"] == pytest.approx(7 / 12)
    assert (found["n"], found["seeds"]) == (4, 3)
    assert found["passes"] == pytest.approx([0.75, 0.5, 0.5])
    assert found["se_seeds"] == pytest.approx(np.std([0.75, 0.5, 0.5], ddof=1) / math.sqrt(3))
    assert found["se"] == pytest.approx(np.std([2 / 3, 0, 2 / 3, 1], ddof=1) / 2)
    low, high = found["ci"]
    assert low < found["mean"] < high
    alone = accuracy.mean_of([[1.0]])
    assert (alone["se"], alone["se_seeds"], alone["ci"]) == (None, None, None)


def test_the_interval_covers_what_it_should() -> None:
    """Over many samples of questions the interval holds the true mean about 95 times in 100."""
    rng = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        rates = rng.random(80)
        table = (rng.random((80, 3)) < rates[:, None]).astype(float)
        low, high = accuracy.mean_of(table.tolist())["ci"]
        inside += low <= 0.5 <= high
    assert 180 <= inside <= 199


@pytest.mark.parametrize(("score", "bounds"), [(0.0, [0, 0.11570]), (1.0, [0.88430, 1])])
def test_no_question_right_is_not_certainty(score: float, bounds: list[float]) -> None:
    """Clopper–Pearson for 0 and 30 of 30."""
    assert accuracy.mean_of([[score] * 3] * 30)["ci"] == pytest.approx(bounds, abs=1e-5)
    assert accuracy.difference({"a": [score], "b": [score]}, {"a": [score], "b": [score]})["ci"] is None


def test_seeds_are_no_new_questions() -> None:
    """Ten equal passes are as uncertain as one."""
    table = [[1.0], [0.0], [1.0], [0.0], [1.0], [0.0]]
    assert accuracy.mean_of([row * 10 for row in table])["ci"] == accuracy.mean_of(table)["ci"]


def test_paired_difference_is_sharper_and_takes_shared_questions_only() -> None:
    rng = random.Random(0)
    first = {f"q{i}": [float(rng.random() < 0.5)] * 2 for i in range(60)}
    second = {name: [values[0] * (index % 10 > 0)] for index, (name, values) in enumerate(first.items())}
    found = accuracy.difference(first | {"only here": [1.0]}, second)
    assert found["n"] == 60
    assert found["difference"] == pytest.approx(
        sum(a[0] - b[0] for a, b in zip(first.values(), second.values(), strict=True)) / 60
    )
    wide = accuracy.mean_of(list(first.values()))["ci"]
    assert found["ci"][1] - found["ci"][0] < (wide[1] - wide[0]) / 2
    assert accuracy.difference(first, {}) == {"difference": None, "ci": None, "n": 0}


def test_average_is_the_mean_of_means() -> None:
    first, second = [[1.0]] * 30, [[0.0], [1.0]] * 50
    found = accuracy.average([first, second])
    assert found["mean"] == pytest.approx(0.75)
    assert found["n"] == 130
    assert 0.68 < found["ci"][0] < 0.75 < found["ci"][1] < 0.82
    assert accuracy.average([first, [[1.0]]])["ci"] is None


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_sets_with_a_correct_one(case: tuple[int, int, int]) -> None:
    correct, samples, k = case
    sets = list(itertools.combinations(range(samples), k))
    expected = sum(min(chosen) < correct for chosen in sets) / len(sets)
    assert accuracy.pass_at_k(correct, samples, k) == pytest.approx(expected)


@given(st.lists(answers, min_size=1, max_size=7), st.data())
def test_majority_is_that_of_every_set(given_answers: list[str | None], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(given_answers)))
    outcomes = []
    for chosen in itertools.combinations(given_answers, k):
        counts = Counter(answer for answer in chosen if answer).most_common()
        best = [answer for answer, count in counts if count == counts[0][1]]
        outcomes.append(best.count("A") / len(best) if best else 0.0)
    expected = sum(outcomes) / len(outcomes)
    assert accuracy.majority_at_k(samples_of(given_answers), k) == pytest.approx(expected)


def test_many_samples_are_drawn_from() -> None:
    samples = samples_of(["A"] * 24 + ["B"] * 16)
    assert 0.75 < accuracy.majority_at_k(samples, 11) < 0.95


def test_votes_of_64_samples_are_those_of_a_plain_loop_over_the_sets() -> None:
    rng = np.random.default_rng(5)
    samples = samples_of([str(rng.choice(["A", "B", "C"])) if rng.random() < 0.8 else None for _ in range(64)])
    draws, total = np.random.default_rng(metrics.SEED), 0.0
    for _ in range(2000):
        chosen = [samples[i] for i in draws.choice(64, size=8, replace=False)]
        votes = Counter(sample.answer for sample in chosen if sample.answer is not None)
        best = [answer for answer, count in votes.items() if count == max(votes.values())]
        total += best.count("A") / len(best) if best else 0.0
    assert accuracy.majority_at_k(samples, 8) == pytest.approx(total / 2000, abs=1e-12)


def test_at_k_has_powers_of_two_and_all() -> None:
    questions = [samples_of(["A", "B", "A"]), samples_of([None, None, "B"])]
    found = accuracy.at_k(questions)
    assert list(found) == ["pass@1", "maj@1", "pass@2", "maj@2", "pass@3", "maj@3"]
    assert found["pass@1"]["mean"] == pytest.approx(1 / 3)
    assert found["pass@2"]["mean"] == pytest.approx(0.5)
    assert found["maj@3"]["mean"] == pytest.approx(0.5)
    assert {value["n"] for value in found.values()} == {2}


def test_avg_at_64_has_the_standard_error_over_questions() -> None:
    """avg@k as lighteval reports it: a question's score is the mean of its k samples, the error is of these scores."""
    rng = np.random.default_rng(3)
    table = (rng.random((30, 64)) < rng.random((30, 1))).astype(float)
    found = accuracy.mean_of(table.tolist())
    assert found["seeds"] == 64 and found["mean"] == pytest.approx(table.mean())
    assert found["se"] == pytest.approx(np.std(table.mean(1), ddof=1) / math.sqrt(30))
    listed = accuracy.at_k([samples_of(["A" if value else "B" for value in row]) for row in table[:3]])
    assert [name for name in listed if name.startswith("pass")] == [f"pass@{2**power}" for power in range(7)]
