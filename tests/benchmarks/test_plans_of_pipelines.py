"""Plans that pareto.py makes: of the bytes of a file of llama.cpp, over groups; on a tiny model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_results import script
from tiny import write_checkpoint

from mixprec.compress.ggml import library_path
from mixprec.core import artifacts
from mixprec.models.model import Model
from mixprec.plan.bits import account
from mixprec.plan.rules import PlanSpec, build_plan

PARTS = (
    "machine", "intervals", "allocation", "pareto_pipelines", "pareto_rows", "bench", "pipeline_once", "pareto_made",
    "pareto_jobs",
)  # fmt: skip
#: Rows of 64 weights, of 256 in down: there q3_k and q6_k fit.
WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "head_dim": 16}
JOB = "gguf@q3_k_s"

pytestmark = pytest.mark.skipif(library_path() is None, reason="xllamacpp is not installed: mixprec[llamacpp]")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Jobs on a tiny model that has learnt something."""
    for name in PARTS:
        monkeypatch.setitem(sys.modules, name, script(name))
    model = str(write_checkpoint(tmp_path / "model", steps=60, tie_word_embeddings=True, **WIDE))
    found = object.__new__(sys.modules["pareto_jobs"].Pipelines)
    found.arguments = argparse.Namespace(
        rows=str(tmp_path / "rows.json"), samples=12, passages=2, threads=1, model=model, data="", work=str(tmp_path)
    )
    found.model, found.work, found.few = model, tmp_path / "work", 4
    found.inventory, found.tokens = Model(model).decoder, tmp_path / "calibration.safetensors"
    drawn = torch.randint(2, 300, (12, 24), generator=torch.Generator().manual_seed(0))
    artifacts.save_tensors(found.tokens, {"tokens": drawn})
    found.calibration = sys.modules["bench"].calibration(found.tokens)
    found.work.mkdir()
    yield found


def theirs(bench: Any, size: int) -> None:
    """A row of llama.cpp's quantizer, whose file has so many bytes."""
    rows, path = sys.modules["pareto_rows"], Path(bench.arguments.rows)
    rows.save(path, [bench.described("llamacpp@q3_k_s") | {"file_bytes": size}])


def test_our_file_has_no_more_bytes_than_theirs(bench: Any, tmp_path: Path) -> None:
    made, jobs = sys.modules["pareto_made"], sys.modules["pareto_jobs"]
    size = least(bench) + 4_500
    theirs(bench, size)
    job = sys.modules["pareto_pipelines"].Job.parse(JOB)
    row = made.by_us(bench, job, tmp_path / "out")
    assert row is not None and row["format"] == "gguf"
    assert size - 4_500 < row["file_bytes"] <= size
    assert row["file_bytes"] == (tmp_path / "out" / "model.gguf").stat().st_size
    assert sum(row["types"].values()) == len(bench.inventory.linears) + 1  # the embedding
    assert set(row["types"]) <= {*jobs.WHOLE, "q8_0"}
    plan = bench.plan(job)
    assert {line.method for line in plan.modules.values()} == {None, "ggml"}
    known = artifacts.read_json(bench.work / "whole_scores.json")
    assert row["cpu_seconds_plan"] == known["cpu_seconds"]


def least(bench: Any) -> int:
    """The smallest file that there is of our types."""
    jobs = sys.modules["pareto_jobs"]
    spec = PlanSpec.model_validate({"default": "q3_k", "rules": [{"match": "embedding", "format": "q3_k"}]})
    plan = build_plan(spec, bench.inventory, bench.model, "ggml")
    return int(jobs.checkpoint_format("gguf").bytes(plan, bench.inventory, jobs.load_config(bench.model)))


def test_a_file_that_is_not_there_has_no_counterpart(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["pareto_jobs"], "MAKERS", {"llamacpp": lambda *_: None})
    assert bench.plan(sys.modules["pareto_pipelines"].Job.parse(JOB)) is None


def test_rows_depend_on_theirs(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: bench.described(name)["fingerprint"] for name in (JOB, "whole@3.25", "exchanged@3.5")}
    monkeypatch.setattr(sys.modules["pareto_jobs"], "ASKING", 99)
    after = {name: bench.described(name)["fingerprint"] for name in before}
    assert {name for name in before if before[name] != after[name]} == {JOB}


def test_a_plan_chooses_among_groups(bench: Any) -> None:
    bench.arguments.proposals = 2
    plan = bench.plan(sys.modules["pareto_pipelines"].Job.parse("additive@3.25"))
    found = account(plan, bench.inventory)
    assert 3.15 < found.effective_bits <= 3.25
    assert set(found.formats) <= set(sys.modules["pareto_jobs"].CANDIDATES)
