"""Scoring against the reviewed verdicts: a person's reading of all 120 released outputs of one model.

``data/verdicts.jsonl`` holds what was read: outcome, answer (null where there is none, or where nothing marks one of
several things said), and the reason of each case that is not plain. No text of the outputs is in it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from test_benchmarks import FOLDERS

from mixprec.core import artifacts
from mixprec.evaluate import benchmarks
from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.scoring import counting_unfinished, score
from mixprec.evaluate.scoring.overlap import normalise

REVIEWED = artifacts.read_jsonl(Path(__file__).parent / "data" / "verdicts.jsonl")


@pytest.fixture(scope="module")
def outputs(shared_data: Path) -> dict[tuple[str, str], tuple[Question, str]]:
    """Question and output of each trace, by benchmark and id."""
    traces = artifacts.read_jsonl(shared_data / "r1_distill_llama_8b_awq_traces" / "traces.jsonl")
    found = {}
    for folder, name in FOLDERS.items():
        questions = benchmarks.load(name, str(shared_data / "benchmarks" / f"{name}.jsonl"))
        for trace in traces:
            if trace["dataset"] == folder:
                found[name, trace["id"]] = (questions[trace["index"]], trace["output"])
    return found


def test_every_output_was_reviewed(outputs: dict[tuple[str, str], Any]) -> None:
    assert {(row["benchmark"], row["id"]) for row in REVIEWED} == set(outputs)
    assert len(REVIEWED) == 120


@pytest.mark.parametrize("row", REVIEWED, ids=lambda row: f"{row['benchmark']}-{row['id']}")
def test_verdict(row: dict[str, Any], outputs: dict[tuple[str, str], tuple[Question, str]]) -> None:
    question, output = outputs[row["benchmark"], row["id"]]
    assert hashlib.sha256(output.encode()).hexdigest() == row["output_sha256"], "the review is of another output"
    verdict = score(question, output)
    assert verdict.outcome == row["outcome"], verdict
    if row["outcome"] == "none":
        assert (verdict.answer, verdict.em, verdict.f1) == (None, 0.0, 0.0)
    elif row["answer"] is not None:
        assert normalise(verdict.answer or "") == normalise(row["answer"])


def test_what_unfinished_thinking_said(outputs: dict[tuple[str, str], tuple[Question, str]]) -> None:
    """Three outputs that never end say the right letter all the time; a lenient scorer counts them."""
    lenient = {
        key[1]: counting_unfinished(question, score(question, output)).outcome
        for key, (question, output) in outputs.items()
        if score(question, output).outcome == "none"
    }
    right = {f"temporal_sequences_{number}" for number in (18, 20, 21)}
    assert {identifier for identifier, outcome in lenient.items() if outcome == "correct"} == right
    assert lenient["2024-II-4"] == "wrong"


def test_the_engine_knows_better(outputs: dict[tuple[str, str], tuple[Question, str]]) -> None:
    """An output without </think> that looks whole is still none where the engine cut it."""
    unclosed = [
        (q, text) for q, text in outputs.values() if "</think>" not in text and score(q, text).outcome != "none"
    ]
    assert len(unclosed) > 10
    for question, output in unclosed:
        assert score(question, output, finished=False).outcome == "none"
        assert score(question, output, finished=True) == score(question, output)


#: The forms in which models of this kind answer; ``{c}`` the conclusion, ``{v}`` the verdict in lower case.
FORMS = {
    "folio": [
        "The conclusion that {c} is **{v}**.",
        "The conclusion that {c} is {v} because the premises do not mention everything needed.",
        "**Answer:** The conclusion that {c} is {v}.",
        "**Answer:** {a}.",
        "\\boxed{{\\text{{{a}}}}}",
        "Based on the given premises, the conclusion that {c} must be {v}.",
        "The conclusion that {c} is **{v}** since if the premises were otherwise, it would be different.",
        'Therefore, the statement "{c}" is {v}.',
        "The conclusion is **{v}**.\n\n1. **Premise 1:** holds (True).\n2. If it is true, more "
        "follows.\n\n**Answer:** {a}.",
    ],
    "temporal_sequences": [
        "The correct answer is ({a}) {o}.",
        "\\boxed{{{a}: {o}}}",
        "\\boxed{{\\text{{({a})}}}}",
        "**Answer: ({a})**",
        "{o}",
        "The only available time is from {o}, making option ({a}) the correct answer.",
        "The only time that nobody saw her is {o}.",
    ],
    "musique": [
        "{a}",
        "{a}.",
        "**{a}**",
        "Answer: {a}",
        "**Final answer:** **{a}**",
        "The answer is {a}.",
        "The answer is: **{a}**.",
        "\\boxed{{\\text{{{a}}}}}",
        "<answer>{a}</answer>",
    ],
}
THOUGHT = "If it holds, the conclusion is true or it is (A). Perhaps the answer is false, or (D).\n</think>\n\n"
#: Gold answers of MuSiQue that are no answers in form: "for Best Performance …", "hosted the summit in 2014".
ODD = 4


@pytest.mark.parametrize("name", FORMS)
def test_every_question_in_the_forms_of_answers(name: str, shared_data: Path) -> None:
    """Each possible answer of every question is read as it is, behind a thinking and without one."""
    failed = set()
    for question in benchmarks.load(name, str(shared_data / "benchmarks" / f"{name}.jsonl")):
        options = question.extra.get("options", {})
        answers = {"folio": ["True", "False", "Uncertain"], "musique": [question.answer]}.get(name, list(options))
        for answer in answers:
            conclusion = str(question.extra.get("conclusion", "")).strip(" .")
            for form in FORMS[name]:
                text = form.format(a=answer, v=answer.lower(), c=conclusion, o=options.get(answer, ""))
                for said in (THOUGHT + text, text):
                    if normalise(score(question, said).answer or "") != normalise(answer):
                        failed.add((question.id, answer))
    assert len(failed) <= (ODD if name == "musique" else 0), failed
