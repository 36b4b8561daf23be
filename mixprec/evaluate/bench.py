"""Benchmarks on one model: generate what is missing, score everything, put it into numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.progress import Generating, generating
from mixprec.evaluate import accuracy, compute, diagnosis
from mixprec.evaluate.accuracy import Sample
from mixprec.evaluate.benchmarks import Question, Retrieval, digest, find, is_papers, load
from mixprec.evaluate.engines.base import Engine, Finish, Request, derived_seed
from mixprec.evaluate.generations import GenerationFile, Key, Origin, Record
from mixprec.evaluate.scoring import RULES, Verdict, score
from mixprec.evaluate.scoring.sections import split
from mixprec.evaluate.spec import ProtocolSpec
from mixprec.traces import thinking

#: The numbers that a benchmark's metric gives: name -> a verdict's value.
METRICS: dict[str, dict[str, Callable[[Verdict], float]]] = {
    "accuracy": {"accuracy": lambda verdict: float(verdict.outcome == "correct")},
    "em_f1": {"em": lambda verdict: verdict.em, "f1": lambda verdict: verdict.f1},
}
Questions = Mapping[str, Sequence[Question]]


def load_questions(
    protocol: ProtocolSpec, data: Path | None, cache: Path | None = None, device: str = "cpu"
) -> dict[str, list[Question]]:
    """All questions of the protocol's benchmarks; its limit is not applied yet. Raises UserError as ``load`` does.

    ``cache``: a folder that keeps embeddings, which ``device`` computes.
    """
    device = "cpu" if device == "auto" else device  # "auto" is for models that are spread over GPUs
    found: dict[str, list[Question]] = {}
    for spec in protocol.benchmarks:
        retrieval = Retrieval(spec.embedder, spec.nearest, spec.embedder_revision, cache=cache, device=device)
        found[spec.name] = load(spec.name, spec.source, spec.revision, data=data, retrieval=retrieval)
    return found


def run(
    engine: Callable[[], Engine],
    questions: Questions,
    protocol: ProtocolSpec,
    model: str,
    folder: Path,
    what: str,
) -> dict[str, Any]:
    """Generate into ``folder``/<benchmark>.jsonl what is not there yet, and return the result (see ``result``).

    ``engine`` is made only where something is missing. ``model``: identity of the model, which a file of generations
    must agree with. Raises UserError as the engine and GenerationFile do; what was generated before stays.
    """
    files = {
        name: GenerationFile(
            folder / f"{name}.jsonl",
            Origin(
                name,
                digest(found),
                model,
                protocol.prompts,
                protocol.sampling,
                protocol.template,
                protocol.thinking_budget,
            ),
        )
        for name, found in questions.items()
    }
    asked = {name: found[: protocol.limit] for name, found in questions.items()}
    keys = {name: [Key(each.id, seed) for seed in protocol.seeds for each in asked[name]] for name in asked}
    missing = {name: files[name].left(keys[name]) for name in keys}
    if any(missing.values()):
        made = engine()
        there = [files[name].done[key].tokens for name in keys for key in keys[name] if key in files[name].done]
        with generating(what, sum(map(len, keys.values())), protocol.max_new_tokens, there) as seen:
            for name, wanted in missing.items():
                _generate(made, asked[name], wanted, protocol, files[name], seen)
    records = {name: files[name].done for name in files}
    return result(asked, records, protocol, model)


def _generate(
    engine: Engine,
    questions: Sequence[Question],
    wanted: Sequence[Key],
    protocol: ProtocolSpec,
    file: GenerationFile,
    seen: Generating,
) -> None:
    by_id = {question.id: question for question in questions}
    chat = protocol.prompts == "chat"
    requests, owners = [], {}
    for key in wanted:
        question = by_id[key.id]
        name = f"{question.benchmark}/{key.id}, seed {key.seed}"
        seed = derived_seed(key.seed, f"{question.benchmark}/{key.id}")
        text = question.message if chat else question.prompt
        requests.append(Request(name, text, seed, chat, template=protocol.template, budget=protocol.budget))
        owners[name] = key
    for made in engine.generate(requests, protocol.sampling, seen.tokens):
        if chat and (tag := thinking.opening(made.prompt, protocol.tags)):
            # The template opened the thinking; without that the output would not say that it is one.
            made = made._replace(output=f"{tag}\n{made.output}")
        file.add(owners[made.key], made, engine.described)
        seen.output(made.tokens)


def result(
    questions: Questions, records: Mapping[str, Mapping[Key, Record]], protocol: ProtocolSpec, model: str
) -> dict[str, Any]:
    """What is known of one model: per benchmark the numbers with their n, and every question's scores and answers.

    average: mean of the accuracies (the paper's Avg), None with fewer than two benchmarks that have one.
    """
    found = {name: _benchmark(questions[name], records[name], protocol) for name in questions}
    tables = [
        [entry["accuracy"] for entry in each["per_question"].values()] for each in found.values() if "accuracy" in each
    ]
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "model": model,
        "scoring_rules": RULES,
        "protocol": {
            "seeds": list(protocol.seeds),
            "prompts": protocol.prompts,
            "limit": protocol.limit,
            "think_tags": list(protocol.think_tags),
            "template": dict(protocol.template),
            "thinking_budget": protocol.thinking_budget,
            **asdict(protocol.sampling),
        },
        "benchmarks": found,
        "average": accuracy.average(tables) if len(tables) > 1 else None,
    }


def _score(question: Question, record: Record, protocol: ProtocolSpec) -> Verdict:
    """An engine knows whether an output came to its own end; where nobody does, scoring reads it from the text."""
    finished = None if record.finish is None else record.finish == "stop"
    return score(question, record.output, finished, protocol.prompts == "paper", protocol.tags)


def _benchmark(questions: Sequence[Question], records: Mapping[Key, Record], protocol: ProtocolSpec) -> dict[str, Any]:
    benchmark = find(questions[0].benchmark)
    outputs = {question.id: [records[Key(question.id, seed)] for seed in protocol.seeds] for question in questions}
    verdicts = {
        question.id: [_score(question, each, protocol) for each in outputs[question.id]] for question in questions
    }
    readers = METRICS[benchmark.metric]
    main = next(iter(readers))
    per_question: dict[str, dict[str, Any]] = {
        name: {metric: [read(verdict) for verdict in verdicts[name]] for metric, read in readers.items()}
        | {
            "answers": [verdict.answer for verdict in verdicts[name]],
            "outcomes": [verdict.outcome for verdict in verdicts[name]],
            "tokens": [record.tokens for record in outputs[name]],
        }
        for name in outputs
    }
    samples = [
        [Sample(readers[main](verdict), verdict.outcome == "correct", verdict.answer) for verdict in verdicts[name]]
        for name in outputs
    ]
    outcomes = Counter(verdict.outcome for each in verdicts.values() for verdict in each)
    return {
        "title": benchmark.title,
        "rows": digest(questions),
        "paper_questions": is_papers(questions),
        **{metric: accuracy.mean_of([entry[metric] for entry in per_question.values()]) for metric in readers},
        "at_k": accuracy.at_k(samples),
        "thinking_cut": sum(record.thinking_cut for each in outputs.values() for record in each),
        "outcomes": {name: outcomes[name] for name in ("correct", "wrong", "none")},
        "diagnosis": _diagnose(questions, outputs, protocol),
        "compute": _compute(outputs, per_question, list(readers)),
        "per_question": per_question,
    }


def _diagnose(
    questions: Sequence[Question], outputs: Mapping[str, Sequence[Record]], protocol: ProtocolSpec
) -> dict[str, Any]:
    pairs = [(question, record) for question in questions for record in outputs[question.id]]
    paper, tags = protocol.prompts == "paper", protocol.tags
    found = [
        diagnosis.diagnose(
            record.output,
            record.finish or _guess(record.output, protocol),
            question.prompt if paper else question.message,
            tags,
        )
        for question, record in pairs
    ]
    return diagnosis.summarise(found, [record.tokens for _, record in pairs])


def _guess(output: str, protocol: ProtocolSpec) -> Finish:
    """How an output ended, told from its text."""
    ended = not output.strip() or split(output, None, protocol.prompts == "paper", protocol.tags).ended
    return "stop" if ended else "length"


def _compute(
    outputs: Mapping[str, Sequence[Record]], per_question: Mapping[str, Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, Any]:
    """Test-time compute by share and metric; in characters where a server counted no tokens."""
    counted = all(record.tokens is not None for each in outputs.values() for record in each)
    lengths = [[record.tokens or 0 if counted else len(record.output) for record in each] for each in outputs.values()]
    return {
        "unit": "tokens" if counted else "characters",
        "shares": {
            str(share): {
                metric: compute.short_and_long(lengths, [each[metric] for each in per_question.values()], share)
                for metric in metrics
            }
            for share in compute.SHARES
        },
    }


def _of_questions(entry: Mapping[str, Any], name: str, metric: str) -> dict[str, Any]:
    """Question -> what a metric gave it. Raises UserError where a result doesn't say it."""
    rows = entry.get("per_question") or {}
    if not rows or any(metric not in each for each in rows.values()):
        raise UserError(f"benchmarks.{name}.per_question: lacks {metric} of a question; run the benchmark again")
    return {key: each[metric] for key, each in rows.items()}


def differences(baseline: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Benchmark -> metric -> paired difference of a result to the baseline's, where both had the same questions."""
    found: dict[str, Any] = {}
    for name, entry in other["benchmarks"].items():
        base = baseline["benchmarks"].get(name)
        if base is None or base["rows"] != entry["rows"]:
            continue
        found[name] = {
            metric: accuracy.difference(_of_questions(entry, name, metric), _of_questions(base, name, metric))
            for metric in ("accuracy", "em", "f1")
            if metric in entry
        }
    return found


def brief(found: Mapping[str, Any]) -> dict[str, Any]:
    """A result without its questions, for a summary."""
    return {
        name: {key: value for key, value in entry.items() if key != "per_question"}
        for name, entry in found["benchmarks"].items()
    } | ({"average": found["average"]} if found["average"] else {})
