"""The benchmark of whole pipelines: figures from rows, rows that add up, names of jobs, table and picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_results import BENCHMARKS, results, script

ARGUMENTS = argparse.Namespace(model="folder/tiny", samples=4, passages=2, quick=False)
PARTS = ("machine", "intervals", "allocation", "pareto_pipelines", "pareto_rows", "pareto_figures", "pareto_table")


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The benchmark's files, which import one another by name."""
    found = {}
    for name in PARTS:
        found[name] = script(name)
        monkeypatch.setitem(sys.modules, name, found[name])
    return found


def row(*sums: float, bits: float = 3.25, **more: Any) -> dict[str, Any]:
    """A row whose passages of 10 tokens have these sums of KL; seen samples have half of the mean."""
    passages = [{"tokens": 10, "kl_sum": value} for value in sums]
    mean = sum(sums) / (10 * len(sums))
    return {
        "evaluation": {"both": {"kl_mean": mean}},
        "kl_by_passage": passages,
        "behaviour_by_passage": passages,
        "kl_calibration": mean / 2,
        "effective_bits": bits,
        "file_bytes": round(bits * 1e6),
        "format": "compressed-tensors",
        "cpu_seconds": 10.0,
        "machine": "one",
        "threads": 1,
        **more,
    }


def measured() -> dict[str, list[Any]]:
    return {
        "gptq@3.25": [row(8, 8, 8, cpu_seconds=5.0, limit={"forward": 1.0, "moments": 3.0})],
        "gptaq@3.25": [row(3, 3, 3, cpu_seconds=8.0)],
        "autoround200@3.25": [row(4, 5, 6, cpu_seconds=40.0), row(4, 5, 6)],
        "autoscheme200@3.5": [row(2, 3, 4, bits=3.49)],
        "exchanged@3.5": [row(1, 2, 3, bits=3.5)],
        "autoscheme200@4.0": [row(1, 2, 3, bits=4.0)],
        "additive@4.0": [row(1, 1, 2, bits=4.0)],
        "modelopt@3.5": [row(3, 3, 4, bits=3.5)],
        "modelopt@4.0": [row(2, 2, 3, bits=4.0)],
        "llmcompressor@3.25": [row(9, 9, 9, cpu_seconds=30.0)],
        "llmcompressor_bf16@3.25": [row(9, 9, 9, cpu_seconds=20.0)],
        "gptqmodel@3.25": [row(9, 9, 9, cpu_seconds=20.0, machine="another")],
    }


def test_ratios_are_of_our_most_complete_and_their_best_pipeline(parts: dict[str, ModuleType]) -> None:
    found = parts["pareto_figures"].figures(measured(), ARGUMENTS)
    assert found["pipelines"] == {
        "3.25": ["gptaq@3.25", "autoround200@3.25"],
        "3.5": ["exchanged@3.5", "autoscheme200@3.5"],
        "4.0": ["additive@4.0", "autoscheme200@4.0"],
    }
    ratios = [found[f"kl_ratio_vs_best_pipeline_{size}"] for size in (325, 350, 400)]
    assert ratios == pytest.approx([9 / 15, 6 / 9, 4 / 6])
    assert found["kl_ratio_vs_best_pipeline"] == pytest.approx(6 / 9)
    low, high = found["kl_ratio_vs_best_pipeline_350_ci"]
    assert found["kl_ratio_vs_best_pipeline_ci"] in ([low, high], found["kl_ratio_vs_best_pipeline_400_ci"])
    assert 1 / 2 <= low < 6 / 9 < high <= 3 / 4  # the least and the largest ratio of a passage
    assert found["gap_recovered"] == pytest.approx(1 - 6 / 24)
    low, high = found["gap_recovered_ci"]
    assert low < 1 - 6 / 24 < high


def test_a_whole_file_meets_the_best_file_of_no_more_bytes_whoever_made_it(parts: dict[str, ModuleType]) -> None:
    rows = measured() | {"whole@3.25": [row(1, 1, 1, format="gguf")]}
    figures = parts["pareto_figures"].figures
    assert figures(rows, ARGUMENTS)["kl_ratio_equal_file_325"] == pytest.approx(3 / 15)
    size = rows["autoround200@3.25"][0]["file_bytes"]
    rows |= {"llamacpp@q3_k_m": [row(2, 2, 2, file_bytes=size)], "llamacpp@q4_k_m": [row(1, 1, 1, file_bytes=size + 1)]}
    assert figures(rows, ARGUMENTS)["kl_ratio_equal_file_325"] == pytest.approx(3 / 6)
    assert figures(rows, ARGUMENTS)["kl_ratio_vs_best_pipeline_325"] == pytest.approx(9 / 15)  # other embeddings
    rows["whole@3.25"] = [row(1, 1, 1, format="gguf", file_bytes=size + 1)]
    assert figures(rows, ARGUMENTS)["kl_ratio_equal_file_325"] is None


def test_costs_are_compared_on_one_machine_alone(parts: dict[str, ModuleType]) -> None:
    found = parts["pareto_figures"].figures(measured(), ARGUMENTS)
    assert found["time_vs_autoround"] == 8 / 40  # the cheaper one, gptq, is worse than AutoRound
    assert found["cpu_speedup_gptq_vs_llmcompressor"] == 20 / 5  # its faster type
    assert found["cpu_speedup_gptq_vs_gptqmodel"] is None
    assert found["limit_ratio"] == 4 / 5


def test_what_tuning_gained_beyond_the_samples_that_it_saw(parts: dict[str, ModuleType]) -> None:
    rows = measured() | {"gptq_tuned@3.25": [row(4, 4, 4, kl_calibration=0.1)]}
    figures = parts["pareto_figures"]
    tuned = {"3.25": ("gptq_tuned@3.25", "gptq@3.25")}
    assert figures.compared(rows, *tuned["3.25"])[0] == pytest.approx(1 / 2)
    assert figures.overfit(rows, *tuned["3.25"]) == pytest.approx((1 / 2) / (0.1 / 0.4))


def test_without_what_is_needed_nothing_is_said(parts: dict[str, ModuleType]) -> None:
    rows = measured()
    del rows["autoround200@3.25"]
    figures = parts["pareto_figures"].figures
    found = figures(rows, ARGUMENTS)
    assert found["kl_ratio_vs_best_pipeline"] is found["kl_ratio_vs_best_pipeline_325"] is None
    assert found["kl_ratio_vs_best_pipeline_ci"] is None and found["kl_ratio_vs_best_pipeline_350"] is not None
    assert found["time_vs_autoround"] is found["kl_ratio_equal_file"] is found["file_ratio_llamacpp"] is None
    known = set(results.meanings(script("pareto").__doc__)) - {"table"}
    assert set(figures({}, ARGUMENTS)) == set(found) == known


def test_draws_follow_their_first_one(parts: dict[str, ModuleType]) -> None:
    rows = {name: {"job": name} for name in ("gptq@3.25#10", "gptq@3.25", "gptq@3.25#2", "gptaq@3.25#1")}
    assert parts["pareto_figures"].drawn(rows) == {
        "gptq@3.25": [{"job": name} for name in ("gptq@3.25", "gptq@3.25#2", "gptq@3.25#10")]
    }


def test_rows_add_up_and_old_settings_are_not_read(parts: dict[str, ModuleType], tmp_path: Path) -> None:
    rows, file = parts["pareto_rows"], tmp_path / "rows.json"
    base = {"model": "tiny", "samples": 4, "passages": 2}
    old = [{**base, "job": name, "fingerprint": "old"} for name in ("b", "a")]
    rows.save(file, rows.merged(rows.load(file), old))
    new = [{**base, "job": "b", "fingerprint": "new"}, {**base, "samples": 32, "job": "b", "fingerprint": "more"}]
    rows.save(file, rows.merged(rows.load(file), new))
    found = rows.load(file)
    assert [(row["samples"], row["job"], row["fingerprint"]) for row in found] == [
        (4, "a", "old"), (4, "b", "new"), (32, "b", "more")
    ]  # fmt: skip
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3 + 2  # a row a line
    assert list(rows.good(found, {"a": "new", "b": "new"})) == ["b"]
    assert rows.good(found, {"a": "new", "b": "more"})["b"]["samples"] == 32


def test_all_jobs_have_names_that_are_read_back(parts: dict[str, ModuleType]) -> None:
    pipelines = parts["pareto_pipelines"]
    jobs = pipelines.jobs(quick=False, draws=2)
    assert len(set(jobs)) == len(jobs)
    assert {"autoround200@3.25", "autoround200@3.25#1", "llamacpp@q3_k_m"} <= set(jobs)
    assert jobs[0] == "autoround200@3.25" and "autoround20@3.25" not in jobs
    for name in (*jobs, *pipelines.jobs(quick=True, draws=3)):
        job = pipelines.Job.parse(name)
        assert name == f"{job.name}@{job.size}{f'#{job.draw}' if job.draw else ''}"
    needed = {f"{name}@{size}" for size, names in pipelines.NEEDED.items() for name in names}
    assert needed <= set(jobs) and set(pipelines.FLAGSHIPS) <= set(pipelines.PIPELINES)
    for wrong in ("gptq@9", "nothing@3.25", "gptq@3.25#x", "gptq"):
        with pytest.raises(SystemExit, match=f"no such job: {wrong}; there are gptq@"):
            pipelines.Job.parse(wrong)


def test_every_peer_has_pins_and_a_mark_in_the_picture(parts: dict[str, ModuleType]) -> None:
    makers = {one.who for one in parts["pareto_pipelines"].PIPELINES.values()}
    assert makers == set(parts["pareto_table"]._MARKS)
    for maker in makers - {"mixprec"}:
        assert list((BENCHMARKS / "peers" / "pins").glob(f"{maker}.*txt")), maker


def test_the_table_has_a_line_for_each_pipeline_and_the_picture_the_front(
    parts: dict[str, ModuleType], tmp_path: Path
) -> None:
    table, rows = parts["pareto_table"], measured()
    lines = table.table(rows).splitlines()
    assert len([line for line in lines if line.startswith("| ")]) == 1 + len(rows)
    assert "| mixprec: GPTAQ | 3.25 | 3.2 | 0.300 [0.300, 0.300] | 0.150 | 8 | 1 | A |" in lines
    assert "A: one, one thread a row unless it says otherwise." in lines and table.table({}) == ""
    packed, files = table.panels(rows | {"whole@3.25": [row(1, 1, 1, bits=6, file_bytes=3_100_000, format="gguf")]})
    assert packed.front() == ["gptaq@3.25", "exchanged@3.5", "additive@4.0"] and files.front() == ["whole@3.25"]
    # Of the same KL as one that is named, and no further from it than names are long.
    near = {"llmcompressor_bf16@3.25", "gptqmodel@3.25", "autoscheme200@3.5"}
    assert set(packed.named()) == set(rows) - near and "whole@3.25" not in packed.rows
    first, second = (table.draw(rows, tmp_path / name)[0].read_bytes() for name in ("one", "two"))
    assert first == second and first.startswith(b"\x89PNG")
    assert table.draw({}, tmp_path / "none") == []


class Stopped(Exception):
    """A run that was killed while it evaluated."""


@pytest.fixture
def bench(parts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Jobs without a model: what a maker makes is a file, what an evaluation finds is a number."""
    for name in ("bench", "pipeline_once", "pareto_made", "pareto_jobs"):
        monkeypatch.setitem(sys.modules, name, script(name))
    jobs = sys.modules["pareto_jobs"]
    calls: list[str] = []

    def make(bench: Any, job: Any, checkpoint: Path) -> dict[str, Any] | None:
        calls.append(job.name)
        checkpoint.mkdir(parents=True)
        return {"cpu_seconds": 1.0} if job.name != "modelopt" else None

    monkeypatch.setattr(jobs, "by_peer", make)
    monkeypatch.setattr(jobs, "MAKERS", {})

    def bench(work: str, **settings: Any) -> Any:
        found = object.__new__(jobs.Pipelines)
        found.arguments = argparse.Namespace(rows=str(tmp_path / "rows.json"), samples=4, passages=2, threads=1)
        found.model, found.work, found.calls = "folder/tiny", tmp_path / work, calls
        found.__dict__ |= {"_identity": ["model", "tokens"], "_machine": "one", **settings}
        found.evaluate = lambda checkpoint: {"kl": 0.5} if checkpoint.is_dir() else {}
        found.work.mkdir(exist_ok=True)
        return found

    return bench


def test_a_job_is_done_once_wherever_its_row_lies(bench: Any) -> None:
    first = bench("first")
    first.job("gptq@3.25")
    first.keep()
    row = first.rows(["gptq@3.25"])["gptq@3.25"]
    assert row["kl"] == 0.5 and row["cpu_seconds"] == 1.0 and row["machine"] == "one" and row["model"] == "tiny"
    for again in (first, bench("second"), bench("third", _machine="another")):
        again.job("gptq@3.25")
    assert first.calls == ["gptq"] and not list((first.work / "made").iterdir())
    bench("fourth", _identity=["model", "other tokens"]).job("gptq@3.25")
    bench("fifth").job("gptq@3.25#1")
    assert first.calls == ["gptq"] * 3


def test_what_was_made_outlives_an_evaluation_that_was_stopped(bench: Any) -> None:
    stopped = bench("work")

    def stop(checkpoint: Path) -> dict[str, Any]:
        raise Stopped

    stopped.evaluate = stop
    with pytest.raises(Stopped):
        stopped.job("autoround200@3.25")
    bench("work").job("autoround200@3.25")
    assert stopped.calls == ["autoround200"]
    assert bench("work").rows(["autoround200@3.25"])["autoround200@3.25"]["kl"] == 0.5


def test_rows_depend_on_what_made_them(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, one = sys.modules["pareto_jobs"], bench("work")
    names = (
        "gptq@3.25",
        "gptq_tuned@3.25",
        "gptq_tuned@3.25#1",
        "exchanged@3.5",
        "exchanged_tuned@3.5",
        "modelopt@3.5",
    )

    def fingerprints() -> dict[str, str]:
        return {name: one.described(name)["fingerprint"] for name in names}

    before = fingerprints()
    assert len(set(before.values())) == len(names)
    for rules, expected in (
        ("TUNING", {name for name in names if "tuned" in name}),
        ("EXCHANGING", {"exchanged@3.5", "exchanged_tuned@3.5"}),
        ("SOLVING", set(names) - {"modelopt@3.5"}),
        ("ASKING", {"modelopt@3.5"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(jobs, rules, 99)
            assert {name for name, found in fingerprints().items() if found != before[name]} == expected, rules


def test_a_peer_that_is_not_there_has_no_row(bench: Any) -> None:
    none = bench("work")
    none.job("modelopt@3.5")
    assert none.rows(["modelopt@3.5"]) == {}
