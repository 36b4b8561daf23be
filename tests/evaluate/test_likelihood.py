"""Likelihoods of answers: against a plain pass over the whole text, closed forms of the statistics, and the verb."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

import mixprec as mp
from mixprec import pipeline, recipe
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import Question, load
from mixprec.evaluate.likelihood import run as likelihoods
from mixprec.evaluate.likelihood.asked import STUBS, asked, options, thoughts
from mixprec.evaluate.likelihood.measure import logprobs, measure
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model

LIKELY = ProtocolSpec(protocol="likelihood")
FOLIO = [
    {"premises": "All cats purr.", "conclusion": f"Cat {n} purrs.", "label": label, "example_id": n, "story_id": 1}
    for n, label in enumerate(("True", "False", "Uncertain", "True"))
]
AIME = [{"ID": f"2024-I-{n}", "Problem": f"Find {n}.", "Answer": n} for n in (7, 204)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    for name, rows in {"folio": FOLIO, "aime_2024": AIME}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedModel:
    return Model(tiny_checkpoint).load()


def questions(files: Path, name: str) -> list[Question]:
    return load(name, str(files / f"{name}.jsonl"), None)


def plainly(loaded: LoadedModel, prefix: str, text: str) -> float:
    """Log-probability of a text behind a prefix, both in one pass, in float64."""
    ids = loaded.encoder(prefix + text).ids
    front = len(loaded.encoder(prefix).ids)
    with torch.no_grad():
        rows = loaded.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(float(rows[at - 1, ids[at]]) for at in range(front, len(ids)))


def test_it_is_that_of_one_pass_over_the_whole_text(loaded: LoadedModel, files: Path) -> None:
    (question, *_) = questions(files, "folio")
    about = asked(question, LIKELY, loaded.tokenizer, None)
    assert about.prefix == f"{question.prompt}\n</think>\n\n{STUBS['truth']}"
    found = measure(loaded, "q", about)
    for truth, ways in options(question).items():
        whole = math.log(sum(math.exp(plainly(loaded, about.prefix, text)) for text in ways))
        assert found.options[truth] == pytest.approx(whole, abs=1e-4)
    assert found.gold == found.options["True"]


@given(st.lists(st.text(st.sampled_from(" abTrue123()."), min_size=1, max_size=8), min_size=1, max_size=3, unique=True))
def test_texts_of_any_length_are_measured_behind_the_same_tokens(loaded: LoadedModel, texts: list[str]) -> None:
    prefix = "Two and two are"
    found = logprobs(loaded, "q", prefix, texts)
    alone = loaded.encoder(prefix).ids
    whole = [loaded.encoder(prefix + text).ids for text in texts]
    assert len({len(ids) - len(each) for ids, each in zip(whole, found, strict=True)}) == 1
    if all(ids[: len(alone)] == alone and len(ids) > len(alone) for ids in whole):
        for text, each in zip(texts, found, strict=True):
            assert sum(each) == pytest.approx(plainly(loaded, prefix, text), abs=1e-4)


def test_open_answers_are_per_token(loaded: LoadedModel, files: Path) -> None:
    question = questions(files, "aime_2024")[1]
    about = asked(question, ProtocolSpec(protocol="likelihood", stub="It is"), loaded.tokenizer, "Two hundred. ")
    assert about.prefix == f"{question.prompt}Two hundred.\n</think>\n\nIt is"
    found = measure(loaded, "q", about)
    assert (found.options, found.answer) == ({}, None)
    assert found.gold == pytest.approx(plainly(loaded, about.prefix, " 204"), abs=1e-4)
    assert found.tokens == len(loaded.encoder(about.prefix + " 204").ids) - len(loaded.encoder(about.prefix).ids)


def test_a_prompt_beyond_the_context_is_refused(loaded: LoadedModel) -> None:
    with pytest.raises(UserError, match="more than the model's context of"):
        logprobs(loaded, "q", "word " * (loaded.context + 1), [" True"])


def entry(answers: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A result's benchmark of (given, right) answers among True, False and Uncertain, with 0.6 for what is given."""
    rows = {str(n): Question(str(n), "folio", "truth", f"m{n}", f"p{n}", right) for n, (_, right) in enumerate(answers)}
    truths = ("True", "False", "Uncertain")
    found = {}
    for n, (given_, right) in enumerate(answers):
        each = {truth: math.log(0.6 if truth == given_ else 0.1) for truth in truths}
        found[str(n)] = likelihoods.Measured(each, each[right], 1)
    return likelihoods.result({"folio": rows}, {"folio": found}, LIKELY, "m")


def test_the_numbers() -> None:
    found = entry([("True", "True"), ("False", "True"), ("True", "True"), ("False", "False")])["benchmarks"]["folio"]
    assert found["accuracy"]["mean"] == 0.75 and found["share"]["mean"] == pytest.approx(0.8)
    assert found["gold_nll"]["mean"] == pytest.approx((3 * math.log(0.8 / 0.6) + math.log(0.8 / 0.1)) / 4)
    assert (found["chance"], found["majority"], found["within_chance"]) == (pytest.approx(1 / 3), 0.75, True)
    many = entry([("True", "True"), ("False", "False"), ("Uncertain", "Uncertain")] * 10)["benchmarks"]["folio"]
    assert not many["within_chance"]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_paired_differences_and_mcnemars_test(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (entry([("True" if pair[at] else "False", "True") for pair in pairs]) for at in (0, 1))
    found = likelihoods.differences(first, second)["folio"]
    lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    assert found["accuracy"]["difference"] == pytest.approx((won - lost) / len(pairs))
    assert (found["accuracy"]["lost"], found["accuracy"]["won"]) == (lost, won)
    tail = 2 * binom.cdf(min(lost, won), lost + won, 0.5) if lost + won else 1.0
    assert found["accuracy"]["p"] == pytest.approx(min(1.0, tail))
    assert found["gold_nll"]["difference"] == pytest.approx((lost - won) * math.log(6) / len(pairs))


def test_other_questions_are_not_compared() -> None:
    assert likelihoods.differences(entry([("True", "True")]), entry([("True", "False")])) == {}


def test_it_goes_on_where_it_was_killed(tiny_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    def ask(out: str, **more: Any) -> mp.LikelihoodResult:
        asked_ = {"benchmarks": ["folio", "aime_2024"], "files": files, "protocol": "likelihood"} | more
        found = mp.bench(Model(tiny_checkpoint), tmp_path / out, **asked_)
        assert isinstance(found, mp.LikelihoodResult)
        return found

    whole = ask("whole")
    lines = (tmp_path / "whole" / "folio.likelihood.jsonl").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "folio.likelihood.jsonl").write_bytes(lines[: len(lines) * 3 // 5])
    assert ask("cut").data == whole.data
    assert (tmp_path / "cut" / "folio.likelihood.jsonl").read_bytes() == lines
    assert mp.LikelihoodResult.load(tmp_path / "whole").data == artifacts.read_json(tmp_path / "whole/likelihood.json")
    with pytest.raises(UserError, match="made of other questions, settings or weights"):
        ask("whole", stub="It is")
    other = ask("other", stub="It is", baseline=whole)
    assert "McNemar" in str(other) and "not the paper's protocol" in " ".join(str(other).split())
    with pytest.raises(UserError, match="needs engine transformers"):
        ask("vllm", engine={"kind": "vllm"})
    with pytest.raises(UserError, match="the baseline holds outputs"):
        ask("x", baseline=mp.BenchResult({"benchmarks": {}}))
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match=r"baseline: .*outputs has no likelihood\.json; outputs don't compare"):
        ask("x", baseline=tmp_path / "outputs")


def test_thoughts_come_from_outputs_of_bench(tiny_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    mp.bench(Model(tiny_checkpoint), tmp_path / "made", benchmarks=["folio"], files=files, max_new_tokens=4, seeds=(1,))
    path = tmp_path / "made" / "folio.jsonl"
    rows = [row | {"output": "Cats purr.</think>\nTrue"} for row in artifacts.read_jsonl(path)]
    rows[1]["output"] = "It never ends"
    path.unlink()
    for row in rows:
        artifacts.append_row(path, row)
    known = {each.id: each for each in questions(files, "folio")}
    found = thoughts(tmp_path / "made", "folio", known)
    assert list(found.values()) == ["Cats purr.", "It never ends", "Cats purr.", "Cats purr."]
    after = {"protocol": "likelihood", "after": str(tmp_path / "made"), "files": files}
    with pytest.raises(UserError, match=r"aime_2024.jsonl is not there"):
        mp.bench(Model(tiny_checkpoint), tmp_path / "x", benchmarks=["aime_2024"], **after)
    with pytest.raises(UserError, match="has no output of question"):
        thoughts(tmp_path / "made", "folio", known | {"99": known["1"]})


def test_a_recipe(tiny_checkpoint: Path, files: Path, tmp_path: Path) -> None:
    data = {
        "model": {"id": str(tiny_checkpoint)},
        "variants": {"original": {"plan": {"default": "keep"}}, "w2": {"plan": {"default": "w2g16"}}},
        "evaluate": {
            "protocol": "likelihood",
            "benchmarks": [{"name": name, "source": str(files / f"{name}.jsonl")} for name in ("folio", "aime_2024")],
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    run = pipeline.Run(recipe.load(tmp_path / "r.yaml"), "", "r", tmp_path / "out", None)
    summary = run.run()
    assert summary["benchmarks"] is None and summary["likelihood"]["baseline"] == "original"
    assert set(summary["likelihood"]["differences"]["w2"]) == {"folio", "aime_2024"}
    assert "Likelihood of answers" in mp.RunResult.load(tmp_path / "out").tables()
    before = (tmp_path / "out/variants/w2/likelihood.json").read_bytes()
    pipeline.Run(recipe.load(tmp_path / "r.yaml"), "", "r", tmp_path / "out", None).run()
    assert (tmp_path / "out/variants/w2/likelihood.json").read_bytes() == before
