"""Artifacts that are damaged, cut, foreign or of a later version are refused by name, or said; never read in silence.

``benchmarks/reliability.py`` does it a thousand times.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import corruption
from faults.corruption import GOOD, Artifact, Case, Gauge

from mixprec.core import artifacts, seals

_FEW = ("annotate", "compress", "trace")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    return corruption.gallery(tmp_path_factory.mktemp("corruption"), *_FEW)


def test_no_damage_is_read_in_silence(listed: list[Artifact]) -> None:
    gauge = Gauge(listed)
    outcomes = {case.name: gauge.outcome(case) for case in corruption.cases(listed, 200)}
    assert not {name: told for name, told in outcomes.items() if told not in GOOD}
    assert sum(told == "refused" for told in outcomes.values()) > 0.9 * len(outcomes)


def test_the_gauge_sees_what_is_read_in_silence(tmp_path: Path) -> None:
    """The harness itself: a file without a seal."""
    path = tmp_path / "a.json"
    artifacts.write_json(path, {"a": 1}, seal=False)
    bare = Artifact("a.json", path, lambda: artifacts.read_json(path))
    gauge = Gauge([bare])
    assert gauge.outcome(Case("changed", bare, b'{"a": 2}')) == "read as something else in silence"
    assert gauge.outcome(Case("broken", bare, b'{"a": ')) == "refused"
    assert gauge.outcome(Case("layout", bare, b'{"a":1}')) == "same"
    assert path.read_text() == '{\n  "a": 1\n}\n'


def test_a_later_version_is_refused_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    with monkeypatch.context() as patched:
        patched.setattr(seals, "SCHEMA_VERSION", 2)
        artifacts.write_json(path, {"a": 1})
    with pytest.raises(
        seals.UserError, match=r"a\.json: was written by a later mixprec \(mixprec_schema 2, .* reads 1"
    ):
        artifacts.read_json(path)
    for strange in (0, True, "1", None, 1.0):
        with pytest.raises(seals.UserError, match="which mixprec never wrote"):
            seals.opened({seals.SCHEMA: strange}, path)


def test_what_was_sealed_before_there_was_a_version_is_read(tmp_path: Path) -> None:
    old = {"a": 1, seals.KEY: seals._of({"a": 1})}
    assert seals.opened(old, "old") == {"a": 1}
    with pytest.raises(seals.Broken, match="old: was edited or damaged"):
        seals.opened(old | {"a": 2}, "old")


def test_rows_that_were_cut_off_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    artifacts.write_jsonl(path, [{"n": n} for n in range(3)])
    assert artifacts.read_jsonl(path) == [{"n": 0}, {"n": 1}, {"n": 2}] and not capsys.readouterr().err
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert len(artifacts.read_jsonl(path)) == 2
    assert "rows.jsonl: has 2 rows of the 3 that were written" in " ".join(capsys.readouterr().err.split())
