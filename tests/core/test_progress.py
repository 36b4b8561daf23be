"""What the bar of generated outputs shows, by a clock that the test turns."""

from __future__ import annotations

import io
import subprocess
import sys

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


def test_a_listener_hears_every_step_and_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    heard: list[progress.Step] = []
    with progress.telling(heard.append):
        with progress.bar("solve", 5, "modules") as advance:
            advance(2)
            advance(3)
        with progress.generating("bench", 3, 100, [7]) as seen:
            seen.output(20)
    assert [step.done for step in heard] == [0, 2, 5, 1, 2]
    assert str(heard[2]) == "solve: 5 of 5 modules" and heard[-1].unit == "outputs"
    assert capsys.readouterr() == ("", "")


def test_a_listener_that_raises_stops_the_work_and_hears_no_more() -> None:
    def stop(step: progress.Step) -> None:
        if step.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), progress.telling(stop), progress.bar("solve", 5, "modules") as advance:
        advance(1)
    with progress.bar("solve", 1, "modules") as advance:
        advance(1)


def test_python_is_quiet_and_tells_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    script = (
        "from mixprec.core import progress\n"
        "with progress.bar('solve', 2, 'modules') as advance: advance(2)\n"
        "progress.console.print('loading a model')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    quiet = progress._Notices(stderr=True, quiet=True)
    with caplog.at_level("INFO", logger="mixprec"):
        quiet.print("loading a model", soft_wrap=True)
    assert caplog.messages == ["loading a model"]
