"""Benchmarks: the paper's prompts character by character, and rows that are not what they must be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixprec import artifacts
from mixprec.errors import UserError
from mixprec.evaluate import benchmarks

#: The benchmarks as the shared traces call them.
FOLDERS = {
    "AIME_2024": "aime_2024",
    "FOLIO": "folio",
    "temporal_sequences": "temporal_sequences",
    "MuSiQue100": "musique",
}


@pytest.mark.parametrize("name", FOLDERS.values())
def test_rows_of_the_paper(name: str, shared_data: Path) -> None:
    found = benchmarks.load(name, str(shared_data / "benchmarks" / f"{name}.jsonl"))
    assert len(found) == benchmarks.find(name).rows
    assert benchmarks.is_papers(found)
    assert not benchmarks.is_papers(found[:-1])


def test_prompts_of_all_traces(shared_data: Path) -> None:
    """Every prompt of the released traces comes out of its row, character by character, with its id and gold answer."""
    questions = {
        folder: benchmarks.load(name, f"data:benchmarks/{name}.jsonl", data=shared_data)
        for folder, name in FOLDERS.items()
    }
    traces = artifacts.read_jsonl(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl")
    assert len(traces) == 120
    for trace in traces:
        question = questions[trace["dataset"]][trace["index"]]
        assert question.prompt == trace["prompt"]
        assert question.id == trace["id"]
        assert question.answer == trace["gold"].strip("()")
        assert list(question.aliases) == trace["gold_aliases"]


def test_a_file_of_another_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"input": "When?\nOptions:\n(A) now\n(B) later", "target": "(A)"}) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl: these are rows of temporal_sequences, not of folio"):
        benchmarks.load("folio", str(file))
