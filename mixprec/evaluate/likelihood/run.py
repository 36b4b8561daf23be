"""Likelihoods of a model's answers on disk, a line for each question, and the numbers that they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.special import logsumexp
from scipy.stats import binomtest

from mixprec.core import artifacts, seals
from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.evaluate import accuracy
from mixprec.evaluate.bench import Questions
from mixprec.evaluate.benchmarks import Question, digest, find
from mixprec.evaluate.likelihood.asked import asked, outputs_of, thoughts
from mixprec.evaluate.likelihood.measure import Measured, measure
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.models.load import LoadedModel

#: Changes when the same weights would get other numbers.
RULES: Final = 1
#: What a line begins with.
_BEGINS: Final = b'{"benchmark": '


def run(
    load: Callable[[], LoadedModel], questions: Questions, protocol: ProtocolSpec, model: str, folder: Path, what: str
) -> dict[str, Any]:
    """Measure what is missing in ``folder``/<benchmark>.likelihood.jsonl, and return the result (see ``result``).

    ``load`` is called only where something is missing. ``model``: identity of the model. Raises UserError as
    ``measure`` and ``thoughts`` do, and for lines that were made from something else.
    """
    asked_of = {name: {each.id: each for each in found[: protocol.limit]} for name, found in questions.items()}
    origin = {name: _origin(name, questions[name], protocol, model) for name in questions}
    files = {name: folder / f"{name}.likelihood.jsonl" for name in questions}
    done = {name: _read(files[name], origin[name]) for name in questions}
    missing = {name: [each for each in found.values() if each.id not in done[name]] for name, found in asked_of.items()}
    if any(missing.values()):
        loaded = load()
        with bar(what, sum(map(len, missing.values())), "questions") as advance:
            for name, wanted in missing.items():
                known = _thoughts(name, wanted, protocol)
                for question in wanted:
                    about = asked(question, protocol, loaded.tokenizer, known.get(question.id))
                    found = measure(loaded, f"{name}/{question.id}", about)
                    artifacts.append_row(files[name], {**origin[name], "id": question.id, **found._asdict()})
                    done[name][question.id] = found
                    advance(1)
    return result(asked_of, done, protocol, model)


def _thoughts(name: str, wanted: Sequence[Question], protocol: ProtocolSpec) -> dict[str, str]:
    if protocol.after is None or not wanted:
        return {}
    return thoughts(Path(protocol.after), name, {each.id: each for each in wanted})


def origin_of(protocol: ProtocolSpec, name: str) -> str | None:
    """SHA-256 of the outputs on a benchmark whose thinking is taken. Raises UserError where they are not there."""
    return None if protocol.after is None else artifacts.sha256_file(outputs_of(Path(protocol.after), name))


def _origin(name: str, questions: Sequence[Question], protocol: ProtocolSpec, model: str) -> dict[str, Any]:
    """What lines of one file have in common; it begins as _BEGINS says."""
    after = origin_of(protocol, name)
    template = [protocol.template] if protocol.template else []
    made = artifacts.fingerprint(digest(questions), model, protocol.prompts, protocol.stub, after, RULES, *template)
    return {"benchmark": name, "made_from": made}


def _read(path: Path, origin: Mapping[str, Any]) -> dict[str, Measured]:
    if not path.is_file() or not path.stat().st_size:
        return {}
    artifacts.mend_lines(path, _BEGINS)
    found = {}
    for number, row in enumerate(artifacts.read_jsonl(path, sealed=True), 1):
        where = f"{path}:{number}"
        if any(row.get(key) != value for key, value in origin.items()):
            raise UserError(f"{where}: was made of other questions, settings or weights; give another --out")
        opened = seals.opened(row, where)
        found[str(opened["id"])] = Measured(opened["options"], opened["gold"], opened["tokens"])
    return found


def result(
    questions: Mapping[str, Mapping[str, Question]],
    measured: Mapping[str, Mapping[str, Measured]],
    protocol: ProtocolSpec,
    model: str,
) -> dict[str, Any]:
    """What is known of one model, JSON: per benchmark the numbers with their n and 95% intervals, and each question's.

    Of closed answers: ``accuracy`` of the most likely option; ``chance``, the accuracy of guessing, and ``majority``,
    of always giving the most frequent answer; ``within_chance``, whether the exact interval of the accuracy reaches
    down to one of them; ``share``, the probability that all options hold together; ``gold_nll``, of the right answer
    among the options, in nats. Of open answers: ``gold_nll`` of the right answer, in nats per token.
    """
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "artifact": "likelihood",
        "model": model,
        "rules": RULES,
        "protocol": {key: getattr(protocol, key) for key in ("protocol", "prompts", "stub", "after", "limit")},
        "benchmarks": {
            name: _benchmark(found, {key: measured[name][key] for key in found}) for name, found in questions.items()
        },
    }


def _benchmark(questions: Mapping[str, Question], measured: Mapping[str, Measured]) -> dict[str, Any]:
    per_question: dict[str, dict[str, Any]] = {}
    for name, found in measured.items():
        if not found.options:
            per_question[name] = {"gold_nll": [-found.gold / found.tokens]}
            continue
        held = float(logsumexp(list(found.options.values())))
        per_question[name] = {
            "accuracy": [float(found.answer == questions[name].answer)],
            "share": [float(np.exp(held))],
            "gold_nll": [held - found.gold],
            "answer": found.answer,
        }
    means = [key for key in ("accuracy", "share", "gold_nll") if key in next(iter(per_question.values()))]
    entry: dict[str, Any] = {
        "title": find(next(iter(questions.values())).benchmark).title,
        "rows": digest(list(questions.values())),
        **{key: accuracy.mean_of([each[key] for each in per_question.values()]) for key in means},
    }
    if "accuracy" in entry:
        entry |= _guessing([len(each.options) for each in measured.values()], list(questions.values()), per_question)
    return entry | {"per_question": per_question}


def _guessing(
    options: Sequence[int], questions: Sequence[Question], per_question: Mapping[str, Any]
) -> dict[str, float | bool]:
    """What guessing reaches, and whether the answers may be no better."""
    chance = float(np.mean([1 / count for count in options]))
    majority = Counter(each.answer for each in questions).most_common(1)[0][1] / len(questions)
    right = sum(int(each["accuracy"][0]) for each in per_question.values())
    low = binomtest(right, len(questions)).proportion_ci(method="exact").low
    return {"chance": chance, "majority": majority, "within_chance": bool(low <= max(chance, majority))}


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Benchmark -> measure -> mean of ``second`` minus ``first`` on their common questions, with its paired interval.

    ``accuracy`` has McNemar's exact test too: ``lost`` and ``won`` questions, and the chance ``p`` of a split at least
    so uneven between two equally good models. Benchmarks of other questions or rules are left out.
    """
    if first["rules"] != second["rules"]:
        return {}
    common = [
        name
        for name, entry in second["benchmarks"].items()
        if first["benchmarks"].get(name, {}).get("rows") == entry["rows"]
    ]
    return {
        name: _difference(*(each["benchmarks"][name]["per_question"] for each in (first, second))) for name in common
    }


def _difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    def moved(key: str) -> dict[str, Any]:
        one, other = ({name: row[key] for name, row in each.items()} for each in (first, second))
        return accuracy.difference(other, one)

    found = {"gold_nll": moved("gold_nll")}
    if "accuracy" in next(iter(first.values())):
        found["accuracy"] = moved("accuracy") | _mcnemar(first, second)
    return found


def _mcnemar(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [(first[name]["accuracy"][0], second[name]["accuracy"][0]) for name in first if name in second]
    lost, won = sum(a > b for a, b in pairs), sum(b > a for a, b in pairs)
    return {"lost": lost, "won": won, "p": float(binomtest(lost, lost + won).pvalue) if lost + won else 1.0}


def brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """A result's benchmarks without their questions, for a summary."""
    return {
        name: {key: value for key, value in entry.items() if key != "per_question"}
        for name, entry in found["benchmarks"].items()
    }
