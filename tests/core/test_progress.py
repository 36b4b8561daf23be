"""What the bar of generated outputs shows, by a clock that the test turns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mixprec.core import progress
from mixprec.core.progress import Generating


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_speed_counts_tokens_before_their_outputs_end() -> None:
    clock = Clock()
    seen = Generating(4, 100, clock=clock)
    assert seen.speed is None and seen.seconds_left is None
    clock.now = 10
    seen.tokens(40)
    assert seen.speed == 4
    # Nothing ended: each may take 100 tokens, 40 of the 400 are there.
    assert seen.seconds_left == (400 - 40) / 4


def test_time_left_by_the_length_that_outputs_have() -> None:
    clock = Clock()
    seen = Generating(10, 1000, clock=clock)
    clock.now = 10
    seen.tokens(50)
    seen.output(20)
    # 50 tokens for one that ended; nine are left, at 5 tokens/s.
    assert seen.seconds_left == 9 * 50 / 5
    for _ in range(9):
        seen.output(3)
    assert (seen.left, seen.seconds_left) == (0, 0)


def test_time_left_never_exceeds_what_the_limit_allows() -> None:
    clock = Clock()
    seen = Generating(8, 100, clock=clock)
    clock.now = 10
    seen.tokens(700)
    seen.output(90)
    # By the mean (700 for one that ended) it would be 7 x 700; seven rows can't have more than 100 each.
    assert seen.seconds_left == pytest.approx((7 * 100 - 610) / 70)


def test_lengths_that_are_there_tell_from_the_start() -> None:
    clock = Clock()
    seen = Generating(2, 10_000, known=[50, 70], clock=clock)
    clock.now = 1
    seen.tokens(10)
    assert seen.seconds_left == pytest.approx(2 * 65 / 10)


def test_engines_that_tell_tokens_with_their_outputs_and_servers_that_count_none() -> None:
    clock = Clock()
    served = Generating(3, 100, clock=clock)
    clock.now = 4
    served.output(20)
    assert served.speed == 5
    silent = Generating(4, 100, clock=clock)
    clock.now = 10
    silent.output(None)
    silent.output(30)
    assert silent.speed is None and silent.seconds_left == 6  # two outputs in 6 s, two are left


def test_one_line_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=text, width=80))
    clock = Clock()
    with progress.generating("benchmarks only_least_important", 480, 32_768, [5, None]) as seen:
        seen.clock, seen._start = clock, 0
        clock.now = 36_000
        seen.tokens(500_000_000)
        seen.output(32_768)
    lines = [line for line in text.getvalue().split("\n") if line.strip()]
    assert len(lines) == 1
    for part in ("benchmarks only_lea…", "3/480 outputs", "13.9k tokens/s", "left "):
        assert part in lines[0]
