"""Benchmarks: the paper's prompts character by character, and rows that are not what they must be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mixprec.core import artifacts
from mixprec.core.errors import UserError
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


AIME = {"ID": "2024-I-1", "Problem": "Find $x$.", "Answer": 33}
FOLIO = {"premises": "All dogs bark.", "conclusion": "Rex barks.", "label": "True", "example_id": 7}
TEMPORAL = {"input": "When?\nOptions:\n(A) 6am to 7am\n(B) 7am to 9am", "target": "(B)"}
MUSIQUE = {
    "id": "2hop__1",
    "paragraphs": [{"idx": 0, "title": "Rex", "paragraph_text": "A dog.", "is_supporting": True}],
    "question": "Who barks?",
    "answer": "Rex",
    "answer_aliases": ["the dog"],
}
ROWS: dict[str, dict[str, Any]] = {
    "aime_2024": AIME,
    "folio": FOLIO,
    "temporal_sequences": TEMPORAL,
    "musique": MUSIQUE,
}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ROWS)
def test_every_column_is_needed(name: str, tmp_path: Path) -> None:
    """A second row without a column is told by file, row and column."""
    for column in benchmarks.find(name).columns:
        if column == "answer_aliases":  # optional: MuSiQue's other releases lack it
            continue
        lacking = {key: value for key, value in ROWS[name].items() if key != column} | {"extra": 1}
        source = write(tmp_path / "rows.jsonl", ROWS[name], lacking)
        with pytest.raises(UserError, match=rf"rows.jsonl: row 2: column '{column}' is missing; there are .*extra"):
            benchmarks.load(name, source)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "aime_2024",
            {"Answer": 1000},
            "column 'Answer': 1000 is no gold answer here; expected an integer from 0 to 999",
        ),
        ("aime_2024", {"Answer": "x"}, "column 'Answer': 'x' is no gold answer"),
        ("aime_2024", {"Answer": True}, "column 'Answer' holds bool, no int or str"),
        ("aime_2024", {"Problem": " "}, "column 'Problem' is empty"),
        (
            "folio",
            {"label": "Maybe"},
            "column 'label': 'Maybe' is no gold answer here; expected True, False, Uncertain",
        ),
        ("folio", {"premises": None}, "column 'premises' holds NoneType, no str"),
        (
            "temporal_sequences",
            {"target": "(C)"},
            r"column 'target': '\(C\)' is no gold answer here; expected one of \(A\)",
        ),
        (
            "temporal_sequences",
            {"input": "When?"},
            "column 'input': 'When\\?' is no gold answer here; expected options",
        ),
        ("musique", {"answer": ""}, "column 'answer' is empty"),
        ("musique", {"paragraphs": ["text"]}, "column 'paragraphs': 'text' is no gold answer here; expected objects"),
        ("musique", {"answer_aliases": [1]}, "column 'answer_aliases'"),
        ("musique", {"answerable": False}, "questions of MuSiQue-Answerable only"),
    ],
)
def test_values_that_do_not_parse(name: str, change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", ROWS[name] | change)
    with pytest.raises(UserError, match=rf"rows.jsonl: row 1: .*{message}"):
        benchmarks.load(name, source)


def test_other_refusals(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", AIME, AIME)
    with pytest.raises(UserError, match="row 2: id '2024-I-1' stands twice"):
        benchmarks.load("aime_2024", source)
    with pytest.raises(UserError, match="'aime': there are aime_2024, folio"):
        benchmarks.load("aime", source)
    with pytest.raises(UserError, match="limit 0: at least 1"):
        benchmarks.load("aime_2024", source, limit=0)
    with pytest.raises(UserError, match="a file has no revision"):
        benchmarks.load("aime_2024", source, revision="0" * 40)
    with pytest.raises(UserError, match="no rows; aime_2024 has 30"):
        benchmarks.load("aime_2024", write(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match=r"no_such\.jsonl"):
        benchmarks.load("aime_2024", str(tmp_path / "no_such.jsonl"))


def test_gold_answers_are_read(tmp_path: Path) -> None:
    def gold(name: str, row: dict[str, Any]) -> str:
        return benchmarks.load(name, write(tmp_path / "rows.jsonl", row))[0].answer

    assert gold("aime_2024", AIME | {"Answer": "033"}) == "33"
    assert gold("folio", FOLIO | {"label": "uncertain"}) == "Uncertain"
    assert gold("temporal_sequences", TEMPORAL) == "B"
    assert gold("musique", MUSIQUE) == "Rex"


class Hub:
    """A datasets package with one dataset."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.asked: dict[str, Any] = {}

    def load_dataset(self, path: str, name: str | None = None, **options: Any) -> list[dict[str, Any]]:
        self.asked = {"path": path, "name": name, **options}
        return self.rows


def test_the_hub(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a commit the content must be the paper's; of MuSiQue the paper's sample is taken, in its order."""
    for name in ROWS:
        rows = artifacts.read_jsonl(shared_data / "benchmarks" / f"{name}.jsonl")
        hub = Hub([*reversed(rows), {**MUSIQUE, "id": "another"}] if name == "musique" else rows)
        monkeypatch.setitem(sys.modules, "datasets", hub)
        found = benchmarks.load(name)
        assert benchmarks.is_papers(found)
        origin = benchmarks.find(name).hub
        assert (hub.asked["path"], hub.asked["split"]) == (origin.dataset, origin.split)
        benchmarks.load(name, "hub:mirror/name")
        assert hub.asked["path"] == "mirror/name"
    hub.rows = hub.rows[1:]
    with pytest.raises(UserError, match="lacks 1 of the paper's questions"):
        benchmarks.load("musique")
    monkeypatch.setitem(sys.modules, "datasets", Hub([FOLIO]))
    with pytest.raises(UserError, match=r"yale-nlp/FOLIO has other rows on the hub now .*pin a commit with revision"):
        benchmarks.load("folio")


def test_a_pinned_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a commit any rows are taken, if the commit came."""

    class Table(list[dict[str, Any]]):
        cache_files: ClassVar = [{"filename": f"/cache/{'1' * 40}/train.arrow"}]

    monkeypatch.setitem(sys.modules, "datasets", Hub(Table([FOLIO])))
    assert [question.id for question in benchmarks.load("folio", revision="1" * 40)] == ["7"]
    with pytest.raises(UserError, match=r"folio: yale-nlp/FOLIO.*: revision 222222222222… could not be fetched"):
        benchmarks.load("folio", revision="2" * 40)


LATER: dict[str, dict[str, Any]] = {
    "aime_2025": {"id": 3, "problem": "Find 070.", "answer": "070"},
    "aime_120": {"problem": "Find 7.", "answer": 7},
    "math_500": {"problem": "Halve one.", "answer": r"\frac{1}{2}", "unique_id": "test/1.json"},
    "gpqa_diamond": {
        "Question": "Which?\n", "Correct Answer": "right", "Incorrect Answer 1": "a", "Incorrect Answer 2": "b",
        "Incorrect Answer 3": "c", "Record ID": "rec1",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LATER)
def test_benchmarks_of_later_papers(name: str, tmp_path: Path) -> None:
    (question,) = benchmarks.load(name, write(tmp_path / "rows.jsonl", LATER[name]))
    expected = {"aime_2025": ("3", "70"), "aime_120": ("aime_120_0", "7"), "math_500": ("test/1.json", r"\frac{1}{2}")}
    if name != "gpqa_diamond":
        assert (question.id, question.answer) == expected[name]
        assert question.prompt == question.message + "\n<think>\n"
    else:
        assert question.extra["options"][question.answer] == "right" and sorted(question.extra["options"]) == [*"ABCD"]
        assert f"({question.answer}) right" in question.message
    assert not benchmarks.is_papers([question])
    with pytest.raises(UserError, match="give a file as source" if name == "aime_120" else "as revision, or a file"):
        benchmarks.load(name)


def test_the_order_of_gpqas_options_is_that_of_the_question_alone(tmp_path: Path) -> None:
    rows = [LATER["gpqa_diamond"] | {"Record ID": f"rec{number}"} for number in range(40)]
    found = benchmarks.load("gpqa_diamond", write(tmp_path / "a.jsonl", *rows))
    again = benchmarks.load("gpqa_diamond", write(tmp_path / "b.jsonl", *reversed(rows)))
    assert {each.answer for each in found} == {*"ABCD"}
    assert {each.id: each.message for each in found} == {each.id: each.message for each in again}
