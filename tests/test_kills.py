"""Kills, signals and full disks at the calls that change files: the same command goes on and ends with the same bytes.

``benchmarks/reliability.py`` does this for every stage, hundreds of times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import kills, smithy
from faults.kills import Bench, Case
from faults.stages import Stage, stages

pytestmark = pytest.mark.skipif(not smithy.buildable(), reason="faults are made on Linux, with a compiler of C")
_HITS: dict[str, tuple[kills.Hit, ...]] = {"annotate": ("kill", "full", "term"), "gguf": ("kill", "full")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kills")


@pytest.fixture(scope="module")
def bench(home: Path) -> Iterator[Bench]:
    with smithy.smithy() as forks:
        yield Bench(forks, home / "work")


@pytest.fixture(scope="module")
def listed(home: Path) -> Iterator[dict[str, Stage]]:
    with stages(home / "made", *_HITS) as found:
        yield found


@pytest.mark.parametrize("name", _HITS)
def test_a_stage_that_is_hit_ends_as_one_that_is_not(bench: Bench, listed: dict[str, Stage], name: str) -> None:
    whole = bench.whole(listed[name])
    for case in [case for hit in _HITS[name] for case in kills.spread({name: whole}, hit, 1)]:
        assert bench.problem(case, listed[name], whole) is None, case.name


def test_a_fault_that_is_not_mended_is_found(bench: Bench, listed: dict[str, Stage]) -> None:
    """The harness itself: a kill is a kill, a disk is full, and other bytes are seen."""
    stage = listed["annotate"]
    whole = bench.whole(stage)
    assert any(call.startswith("rename /spans.jsonl") for call in whole.calls)
    middle = whole.calls.index(next(call for call in whole.calls if call.startswith("write"))) + 1
    bench.clear(stage)
    assert bench.run(stage, "kill", middle).code == -9
    (left,) = bench.files
    assert left.endswith(".partial") and len(bench.files[left]) == len(whole.files["spans.jsonl"]) // 2
    bench.clear(stage)
    assert "disk is full" in bench.run(stage, "full", middle).told
    other = whole._replace(files={"spans.jsonl": b"other"})
    assert "leaves others of ['spans.jsonl']" in str(bench.problem(Case("annotate", "kill", middle), stage, other))


@pytest.mark.slow
def test_every_stage(bench: Bench, tmp_path: Path) -> None:
    with stages(tmp_path / "made") as every:
        wholes = {name: bench.whole(stage) for name, stage in every.items()}
        cases = [case for hit in ("kill", "full", "moment", "term", "int") for case in kills.spread(wholes, hit, 20)]
        wrong = {case.name: bench.problem(case, every[case.stage], wholes[case.stage]) for case in cases}
    assert not {name: told for name, told in wrong.items() if told}
