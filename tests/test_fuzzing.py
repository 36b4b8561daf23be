"""Every reader of strangers' files, texts and answers on made-up ones.

``benchmarks/reliability.py`` takes a million.
"""

from __future__ import annotations

import time

import pytest
from faults import fuzzing
from faults.fuzzing import MOST_SECONDS, Target

from mixprec.core.errors import UserError


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> list[Target]:
    return fuzzing.targets(tmp_path_factory.mktemp("fuzzing"))


def test_no_case_ends_in_a_traceback_or_takes_long(targets: list[Target]) -> None:
    found = {target.name: fuzzing.run(target, 60) for target in targets}
    assert all(count >= 40 for count, _ in found.values())
    assert {
        name: [(each.why, each.content[:200]) for each in faults] for name, (_, faults) in found.items() if faults
    } == {}


def test_what_was_found_once_is_tried(targets: list[Target]) -> None:
    assert sum(len(fuzzing.kept(target)) for target in targets) == len([*fuzzing.CORPUS.rglob("*.*")]) > 0


@pytest.mark.parametrize(
    "repeated", ["So 4. ", "(", "**", "\\boxed{", "<think>", '["backtracking"] a', "a-", "\n", "1/2 "]
)
def test_long_texts_take_time_in_proportion(targets: list[Target], repeated: str) -> None:
    """A megabyte of what repeats: a quadratic reader would take minutes."""
    content = (repeated * (1_000_000 // len(repeated))).encode()
    for name in ("output", "diagnosis"):
        (target,) = (each for each in targets if each.name == name)
        start = time.process_time()
        target.read(content)
        assert time.process_time() - start < 10, name


def test_the_harness_sees_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(content: bytes) -> None:
        if b"9" in content:
            raise ValueError("nine")

    def refuses(_: bytes) -> None:
        raise UserError("no")

    def hangs(_: bytes) -> None:
        while True:
            pass

    count, faults = fuzzing.run(Target("none", fails, [b'{"a": 1}']), 400)
    assert count >= 400 and faults and {each.why for each in faults} == {"ValueError: nine"}
    assert fuzzing.problem(Target("none", refuses, []), b"") is None
    monkeypatch.setattr(fuzzing, "MOST_SECONDS", MOST_SECONDS / 40)
    assert fuzzing.problem(Target("none", hangs, []), b"") == "hangs"
    held = bytearray(1)
    grows = Target("none", lambda _: held.extend(bytes(fuzzing.MOST_BYTES + 100_000_000)), [])
    monkeypatch.setattr(fuzzing, "MOST_SECONDS", 10 * MOST_SECONDS)
    assert "MB" in str(fuzzing.problem(grows, b""))
