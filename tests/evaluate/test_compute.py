"""Shortest against longest outputs."""

from __future__ import annotations

import random

import pytest

from mixprec.evaluate.compute import short_and_long


def test_counts_are_the_papers() -> None:
    """83.3 = 50 of 60 for FOLIO at 30%, 82.5 = 33 of 40 at 20%, 9 and 6 for AIME: rounded down."""
    for questions, share, count in ((203, 0.3, 60), (203, 0.2, 40), (30, 0.3, 9), (30, 0.2, 6), (100, 0.3, 30)):
        assert short_and_long([[1]] * questions, [[1.0]] * questions, share)["n"] == count


def test_against_a_plain_loop() -> None:
    rng = random.Random(0)
    lengths = [[rng.randrange(10, 1000) for _ in range(3)] for _ in range(41)]
    scores = [[float(rng.random() < 500 / (length + 400)) for length in row] for row in lengths]
    found = short_and_long(lengths, scores, 0.2)
    short, long, ratio = [], [], []
    for seed in range(3):
        order = sorted(range(41), key=lambda q: lengths[q][seed])
        ends = order[:8], order[-8:]
        short.append(sum(scores[q][seed] for q in ends[0]) / 8)
        long.append(sum(scores[q][seed] for q in ends[1]) / 8)
        ratio.append(sum(lengths[q][seed] for q in ends[1]) / sum(lengths[q][seed] for q in ends[0]))
    assert found["short"] == pytest.approx(sum(short) / 3)
    assert found["long"] == pytest.approx(sum(long) / 3)
    assert found["ratio"] == pytest.approx(sum(ratio) / 3)
    assert found["n"] == 8
    for name in ("short", "long", "ratio"):
        assert found[f"{name}_ci"][0] < found[name] < found[f"{name}_ci"][1]


def test_too_few_questions() -> None:
    assert short_and_long([[5], [6]], [[1.0], [0.0]], 0.3) == {
        "short": None, "long": None, "ratio": None, "short_ci": None, "long_ci": None, "ratio_ci": None, "n": 0
    }  # fmt: skip
