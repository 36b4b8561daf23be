"""Benchmarks from end to end with an engine that knows what it answers, and with a server that dies on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mixprec.core.errors import UserError
from mixprec.evaluate import bench, spec
from mixprec.evaluate.benchmarks import BENCHMARKS
from mixprec.evaluate.engines.base import Generation, Request, Sampling
from mixprec.evaluate.spec import ProtocolSpec

FOLIO = [
    {"example_id": i, "premises": f"Premise {i}.", "conclusion": f"Conclusion {i}.", "label": label}
    for i, label in enumerate(["True", "False", "Uncertain"] * 4)
]
MUSIQUE = [
    {
        "id": f"2hop_{i}", "paragraphs": [], "question": f"Who is {i}?", "answer": "Ada Lovelace", "answer_aliases": [],
    }
    for i in range(5)
]  # fmt: skip


class Known:
    """Answers ``answers(key)``; dies after ``most`` answers."""

    def __init__(self, answers: Any, most: int = 10_000) -> None:
        self.described = {"kind": "known"}
        self.answers = answers
        self.most = most
        self.asked: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling, on_tokens: Any = None) -> Iterator[Generation]:
        for request in requests[::-1]:  # in any order
            if len(self.asked) == self.most:
                raise UserError("the server is gone")
            self.asked.append(request)
            output, finish = self.answers(request)
            yield Generation(request.key, output, finish, len(output), 10, request.prompt)


def answer(request: Request) -> tuple[str, Any]:
    """Right for every third question of FOLIO, cut on the second, no answer on the third; half right names."""
    if "Premise" not in request.prompt:
        return "Hm.</think>\nThe answer is \\boxed{Ada}.", "stop"
    number = int(request.prompt.split("Premise ")[1].split(".")[0])
    if number % 3 == 1:
        return "Let me see. " * 50, "length"
    return ("Hm.\n</think>\n\\boxed{True}", "stop") if number % 3 == 0 else ("", "stop")


@pytest.fixture
def protocol(tmp_path: Path) -> ProtocolSpec:
    for name, rows in (("folio", FOLIO), ("musique", MUSIQUE)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"name": name, "source": str(tmp_path / f"{name}.jsonl")} for name in ("folio", "musique")]
    return ProtocolSpec.model_validate({"benchmarks": sources, "seeds": [0, 1], "max_new_tokens": 100})


def run(protocol: ProtocolSpec, folder: Path, engine: Known, model: str = "m") -> dict[str, Any]:
    return bench.run(lambda: engine, bench.load_questions(protocol, None), protocol, model, folder, "test")


def test_numbers_and_what_went_wrong(protocol: ProtocolSpec, tmp_path: Path) -> None:
    found = run(protocol, tmp_path / "out", Known(answer))
    folio, musique = found["benchmarks"]["folio"], found["benchmarks"]["musique"]
    assert folio["accuracy"]["mean"] == pytest.approx(1 / 3)
    assert (folio["accuracy"]["n"], folio["accuracy"]["seeds"]) == (12, 2)
    assert folio["outcomes"] == {"correct": 8, "wrong": 0, "none": 16}
    health = folio["diagnosis"]
    assert (health["n"], health["cut"], health["collapsed"], health["empty"]) == (24, 8, 8, 8)
    assert health["thinking"] == {"closed": 8, "open": 16, "absent": 0}
    assert not folio["paper_questions"]
    assert (musique["em"]["mean"], musique["f1"]["mean"]) == (0, pytest.approx(2 / 3))
    assert found["average"] is None
    assert folio["at_k"]["pass@2"]["mean"] == pytest.approx(1 / 3)
    assert folio["per_question"]["0"]["answers"] == ["True", "True"]
    # 30% of 12: the three shortest are empty, the three longest are the loops.
    found_compute = folio["compute"]["shares"]["0.3"]["accuracy"]
    assert (found_compute["short"], found_compute["long"], found_compute["n"]) == (0, 0, 3)
    json.dumps(found, allow_nan=False)


def test_seeds_of_requests_differ_and_are_known(protocol: ProtocolSpec, tmp_path: Path) -> None:
    engine, again = Known(answer), Known(answer)
    run(protocol, tmp_path / "a", engine)
    run(protocol, tmp_path / "b", again)
    seeds = [request.seed for request in engine.asked]
    assert len(set(seeds)) == len(seeds) == 34
    assert seeds == [request.seed for request in again.asked]
    assert all(request.prompt.endswith("<think>\n") and not request.chat for request in engine.asked)
    chat = Known(answer)
    run(protocol.model_copy(update={"prompts": "chat"}), tmp_path / "c", chat)
    assert all("<think>" not in request.prompt and request.chat for request in chat.asked)


def test_a_server_that_dies_costs_nothing_that_is_finished(protocol: ProtocolSpec, tmp_path: Path) -> None:
    whole = run(protocol, tmp_path / "whole", Known(answer))
    with pytest.raises(UserError, match="the server is gone"):
        run(protocol, tmp_path / "out", Known(answer, most=7))
    lines = (tmp_path / "out" / "folio.jsonl").read_text().split("\n")
    assert len(lines) == 8
    (tmp_path / "out" / "folio.jsonl").write_text("\n".join(lines[:7]) + "\n" + '{"benchmark": "fol')
    rest = Known(answer)
    assert run(protocol, tmp_path / "out", rest) == whole
    assert len(rest.asked) == 34 - 7
    # All there: the engine is not even made.
    assert bench.run(
        lambda: pytest.fail("an engine"), bench.load_questions(protocol, None), protocol, "m", tmp_path / "out", "test"
    ) == whole  # fmt: skip


def test_more_seeds_and_questions_go_on_in_the_same_file(protocol: ProtocolSpec, tmp_path: Path) -> None:
    few = protocol.model_copy(update={"seeds": (0,), "limit": 3})
    found = run(few, tmp_path / "out", Known(answer))
    assert found["benchmarks"]["folio"]["accuracy"]["n"] == 3
    engine = Known(answer)
    run(protocol, tmp_path / "out", engine)
    assert len(engine.asked) == 34 - 6


def test_another_revision_of_the_benchmark_is_refused(protocol: ProtocolSpec, tmp_path: Path) -> None:
    run(protocol, tmp_path / "out", Known(answer))
    path = tmp_path / "folio.jsonl"
    path.write_text(path.read_text().replace("Conclusion 3.", "Conclusion 3 was another."))
    with pytest.raises(UserError, match=r"folio.jsonl:1: rows is .* another --out"):
        run(protocol, tmp_path / "out", Known(answer))
    with pytest.raises(UserError, match=r"folio.jsonl:1: rows is|model is 'm', this run has 'other'"):
        run(protocol, tmp_path / "out", Known(answer), model="other")


def test_differences_are_paired_and_of_the_same_questions_only(protocol: ProtocolSpec, tmp_path: Path) -> None:
    base = run(protocol, tmp_path / "a", Known(answer))
    better = run(protocol, tmp_path / "b", Known(lambda _: ("</think>\\boxed{True}", "stop")))
    worse = run(protocol, tmp_path / "c", Known(lambda _: ("</think>\\boxed{False}", "stop")))
    assert bench.differences(base, better)["folio"]["accuracy"]["difference"] == 0
    moved = bench.differences(base, worse)["folio"]["accuracy"]
    assert (moved["difference"], moved["n"]) == (pytest.approx(0), 12)
    assert moved["ci"][0] < 0 < moved["ci"][1]
    short = run(protocol.model_copy(update={"limit": 4}), tmp_path / "d", Known(answer))
    assert bench.differences(base, short) == {}


def test_the_papers_average(tmp_path: Path, protocol: ProtocolSpec) -> None:
    aime = tmp_path / "aime.jsonl"
    aime.write_text(json.dumps({"ID": "2024-I-1", "Problem": "Find\f $rac{1}{2}$\t.", "Answer": 7}) + "\n")
    both = ProtocolSpec.model_validate(
        {"benchmarks": [protocol.benchmarks[0].model_dump(), {"name": "aime_2024", "source": str(aime)}], "seeds": [0]}
    )
    engine = Known(lambda r: ("</think>\\boxed{7}", "stop") if "Find" in r.prompt else answer(r))
    found = run(both, tmp_path / "out", engine)
    assert found["average"]["mean"] == pytest.approx((1 / 3 + 1) / 2)
    assert any("\f" in request.prompt and "\t" in request.prompt for request in engine.asked)


def test_names_and_sizes_are_the_catalogues() -> None:
    assert {name: each.rows for name, each in BENCHMARKS.items()} == spec.SIZES
    assert set(spec.BenchmarkName.__args__) == set(BENCHMARKS)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"benchmarks": ["folio", "folio"]}, "folio stands twice"),
        ({"benchmarks": ["gsm8k"]}, "aime_2024"),
        ({"seeds": [1, 1]}, "seed twice"),
        ({"seeds": []}, "at least 1"),
        ({"limit": 0}, "greater than or equal to 1"),
        ({"engine": {"kind": "ollama"}}, "transformers"),
    ],
)
def test_recipes_that_make_no_sense(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ProtocolSpec.model_validate(change)


def test_outputs_to_generate() -> None:
    spec_of = ProtocolSpec.model_validate({"benchmarks": ["aime_2024", "folio"], "limit": 100})
    assert spec_of.outputs() == {"aime_2024": 90, "folio": 300}


class Templated(Known):
    """Its chat template opens the thinking, or doesn't."""

    def __init__(self, opens: bool) -> None:
        super().__init__(lambda _: ("The answer is \\boxed{True}. But wait, premi", "length"))
        self.opens = opens

    def generate(self, requests: Sequence[Request], sampling: Sampling, on_tokens: Any = None) -> Iterator[Generation]:
        for made in super().generate(requests, sampling):
            yield made._replace(prompt=f"<user>{made.prompt}<assistant>" + "<think>\n" * self.opens)


@pytest.mark.parametrize("opens", [True, False])
def test_a_template_that_opens_the_thinking(opens: bool, protocol: ProtocolSpec, tmp_path: Path) -> None:
    """Cut inside its thinking an output has no answer; cut in the answer of a model that doesn't think it has one."""
    chat = protocol.model_copy(update={"prompts": "chat", "benchmarks": protocol.benchmarks[:1]})
    folio = run(chat, tmp_path / "out", Templated(opens))["benchmarks"]["folio"]
    assert folio["outcomes"] == (
        {"correct": 0, "wrong": 0, "none": 24} if opens else {"correct": 8, "wrong": 16, "none": 0}
    )
    assert folio["diagnosis"]["thinking"] == {"closed": 0, "open": 24 * opens, "absent": 24 * (not opens)}


def test_a_users_tags_are_read_again_without_generating(protocol: ProtocolSpec, tmp_path: Path) -> None:
    """Tags belong to scoring: outputs that are there are scored again, and the result says by which tags."""
    chat = protocol.model_copy(update={"prompts": "chat", "benchmarks": protocol.benchmarks[:1]})
    run(chat, tmp_path / "out", Known(lambda _: ("<plan>\\boxed{True}</plan>\nI can't say.", "stop")))
    tagged = chat.model_copy(update={"think_tags": ("<plan>,</plan>",)})
    found = bench.run(
        lambda: pytest.fail("an engine"), bench.load_questions(tagged, None), tagged, "m", tmp_path / "out", "test"
    )
    assert found["protocol"]["think_tags"] == ["<plan>,</plan>"]
    assert found["benchmarks"]["folio"]["diagnosis"]["tags"] == {"<plan>": 24}
    with pytest.raises(ValidationError, match=r"write what opens and what closes a thinking"):
        ProtocolSpec.model_validate({"think_tags": ["<plan>"]})
