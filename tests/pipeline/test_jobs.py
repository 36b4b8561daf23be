"""Which jobs a run falls into, and how they are handed out."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from mixprec import recipe
from mixprec.core import events
from mixprec.core.errors import UserError
from mixprec.pipeline import jobs, scheduling
from mixprec.pipeline.executors import placement, slurm, worker
from mixprec.pipeline.executors.base import Done
from mixprec.pipeline.executors.placement import Placement
from mixprec.pipeline.jobs import Job
from mixprec.recipe import Recipe

CALIBRATION = {"traces": "bundled:attribution", "samples": 4, "tokens": 16}
EXCHANGED = {"budget": {"effective_bits": 4.5, "candidates": ["w3g64", "w4g64"], "exchange": {"proposals": 2}}}


def recipe_of(**parts: Any) -> Recipe:
    whole: dict[str, Any] = {
        "model": {"id": "smollm2-135m-instruct"},
        "compress": {"method": "gptq", "calibration": CALIBRATION},
        "sensitivity": {"formats": ["w3g64", "w4g64"]},
        "variants": {"a": {"plan": {"default": "w3g64"}}, "b": {"plan": EXCHANGED}},
        "evaluate": {"traces": {"source": "bundled:held_out"}, "benchmarks": [{"name": "aime_2024"}]},
    }
    return Recipe.model_validate({key: value for key, value in (whole | parts).items() if value is not None})


def after(listed: list[Job]) -> dict[str, tuple[str, ...]]:
    return {job.name: job.after for job in listed}


def test_all_jobs_of_a_recipe_each_behind_those_that_it_waits_for() -> None:
    found = after(jobs.jobs_of(recipe_of(ablation={"each": "*_up", "formats": ["w3g64"]}), 2))
    assert found == {
        "prepare": (),
        "cells/1of2": ("prepare",),
        "cells/2of2": ("prepare",),
        "ablation": ("prepare", "cells/1of2", "cells/2of2"),
        "exchange/b": ("prepare",),
        "reference": ("prepare",),
        "compress/a": ("prepare",),
        "evaluate/a": ("reference", "compress/a"),
        "benchmarks/a": ("compress/a",),
        "compress/b": ("exchange/b",),
        "evaluate/b": ("reference", "compress/b"),
        "benchmarks/b": ("compress/b",),
    }
    seen: set[str] = set()
    for name, before in found.items():
        assert seen.issuperset(before)
        seen.add(name)


def test_nothing_is_prepared_where_variants_share_nothing() -> None:
    alone = recipe_of(sensitivity=None, evaluate=None, variants={"a": {"plan": {"default": "w3g64"}}})
    assert after(jobs.jobs_of(alone)) == {"compress/a": ()}


@pytest.mark.parametrize("path", sorted(recipe.catalogue().values()), ids=lambda path: path.stem)
def test_every_recipe_falls_into_jobs(path: Path) -> None:
    listed = jobs.jobs_of(recipe.load(path), 3)
    names = [job.name for job in listed]
    assert len(set(names)) == len(names)
    for number, job in enumerate(listed):
        assert set(job.after) <= set(names[:number])


def test_gpus_that_jobs_use() -> None:
    def used(job: str, device: str, **engine: Any) -> int:
        spec = {"benchmarks": [{"name": "aime_2024"}], "engine": engine} if engine else None
        chosen = recipe_of(model={"id": "smollm2-135m-instruct", "device": device}, evaluate=spec)
        return jobs.gpus_of(chosen, Job(job, "a"), 8)  # type: ignore[arg-type]

    assert used("compress", "cpu") == 0
    assert used("compress", "cuda") == used("evaluate", "cuda") == 1
    assert (used("compress", "auto"), used("evaluate", "auto")) == (1, 8)
    assert used("benchmarks", "cuda", kind="vllm", gpus=4) == 4


# Handing out


class Told:
    """An executor that ends jobs in any order, as it is told: what it did is in ``did``."""

    tells = False

    def __init__(self, slots: int = 100, seed: int = 0, ends: dict[str, list[Done]] | None = None) -> None:
        self.slots, self._ends, self._random = slots, ends or {}, random.Random(seed)
        self.did: list[str] = []
        self._left: list[Job] = []
        self.most, self.closed = 0, False

    def submit(self, job: Job) -> None:
        self._left.append(job)
        self.most = max(self.most, len(self._left))

    def wait(self) -> list[Done]:
        job = self._left.pop(self._random.randrange(len(self._left)))
        self.did.append(job.name)
        planned = self._ends.get(job.name)
        return [planned.pop(0) if planned else Done(job.name, where="there")]

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("slots", [1, 3, 100])
def test_jobs_wait_for_those_before_them(seed: int, slots: int) -> None:
    chosen, told = recipe_of(), Told(slots, seed)
    scheduling.carry_out(chosen, told)
    listed = jobs.jobs_of(chosen, slots)
    assert sorted(told.did) == sorted(job.name for job in listed) and told.closed and told.most <= slots
    for job in listed:
        assert all(told.did.index(name) < told.did.index(job.name) for name in job.after)
    if slots == 1:
        assert told.did == [job.name for job in listed]


def test_who_dies_is_told_and_the_job_is_started_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told(ends={"compress/a": [Done("compress/a", died="killed"), Done("compress/a", died="killed again")]})
    with events.logged(tmp_path):
        scheduling.carry_out(recipe_of(), told)
    assert told.did.count("compress/a") == 3
    said = " ".join(capsys.readouterr().err.split())
    assert "compress/a: whoever did it has died (killed); started again, 2 of 4" in said
    rows = [row for row in events.read(tmp_path) if row.get("name") == "compress/a"]
    assert [row["state"] for row in rows] == ["begun", "begun", "begun", "made"] and rows[-1]["where"] == "there"


def test_who_always_dies_is_given_up() -> None:
    deaths = [Done("compress/a", died="no memory")] * scheduling.STARTS
    told = Told(ends={"compress/a": deaths})
    with pytest.raises(UserError, match=r"compress/a: died 4 times, at last so: no memory"):
        scheduling.carry_out(recipe_of(), told)
    assert told.did.count("compress/a") == scheduling.STARTS


def test_what_fails_stops_only_what_stands_on_it() -> None:
    told = Told(ends={"compress/a": [Done("compress/a", problem="plan: wrong")]})
    with pytest.raises(UserError, match="jobs that failed: compress/a: plan: wrong"):
        scheduling.carry_out(recipe_of(), told)
    assert "evaluate/b" in told.did and "evaluate/a" not in told.did and told.closed
    told = Told(ends={"compress/a": [Done("compress/a", crash="Traceback …")]})
    with pytest.raises(RuntimeError, match="Traceback"):
        scheduling.carry_out(recipe_of(), told)


# Options and processes


def test_a_missing_package_is_told_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"package ray is not installed; run: pip install 'mixprec\[ray\]'"):
        placement.require(Placement("ray"))
    with pytest.raises(UserError, match=r"package submitit is not installed; run: pip install 'mixprec\[slurm\]'"):
        placement.require(Placement("slurm"))


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="--on dask: not known; choose one of ray, slurm"):
        Placement("dask")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--cpus 0: has to be at least 1"):
        Placement("ray", cpus=0)
    with pytest.raises(UserError, match="--slurm: goes with --on slurm"):
        Placement("ray", slurm={"partition": "gpu"})


@pytest.mark.parametrize("text", ["0", "-5", "nan", "inf", "soon"])
def test_amounts_that_no_job_can_have_are_refused(text: str) -> None:
    """Slurm, and submitit's own processes, end a job of no time at once: it would be started four times in vain."""
    for name in ("timeout_min", "mem_gb"):
        with pytest.raises(UserError, match=rf"--slurm {name}={text}: (has to be above 0|is no number)"):
            slurm._parsed({name: text})
    assert slurm._parsed({"timeout_min": "30", "mem_gb": "0.5", "partition": "gpu"}) == {
        "timeout_min": 30, "mem_gb": 0.5, "slurm_partition": "gpu",
    }  # fmt: skip


def test_jobs_without_a_cluster_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mixprec import cli

    monkeypatch.setattr(sys, "argv", ["mixprec", "run", "quickstart", "--jobs", "2"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2 and "--jobs: goes with --on ray or --on slurm" in capsys.readouterr().err


def test_a_process_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    order = worker.Order("", "r", str(tmp_path / "none"), None, str(tmp_path))
    found = worker.do(order, Job("reference"))
    assert "none: the run's folder is not on" in found.problem and not found.crash


def test_threads_are_as_many_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MIXPREC_DATA", "/data")
    monkeypatch.setenv("MIXPREC_API_KEY", "secret")
    assert Placement("ray").cpus == 3
    found = worker.variables(5)
    assert (found["OMP_NUM_THREADS"], found["MIXPREC_DATA"]) == ("5", "/data") and "secret" not in found.values()
