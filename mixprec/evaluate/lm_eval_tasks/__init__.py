"""The benchmarks as tasks of lm-eval: the same prompts and the same scoring, for people who live there.

    lm_eval --include_path $(python -m mixprec.evaluate.lm_eval_tasks) --tasks mixprec_folio …

The YAML files beside this one name the functions here. Rows come from, in this order: ``--metadata '{"source": …}'``,
the data folder (MIXPREC_DATA, ``benchmarks/*.jsonl`` in it), the hub.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from mixprec.evaluate import benchmarks
from mixprec.evaluate.benchmarks import Question, Retrieval
from mixprec.evaluate.scoring import Verdict, score
from mixprec.recipe import DATA_VARIABLE

Style = Literal["paper", "chat"]

#: What lm_eval's --include_path takes.
FOLDER = Path(__file__).parent


def rows(
    benchmark: str,
    source: str | None = None,
    source_revision: str | None = None,
    embedder: str | None = None,
    style: Style = "paper",
    **_: Any,
) -> dict[str, Any]:
    """A benchmark's questions as lm-eval's split ``test``; the keywords are a task's metadata.

    lm-eval puts the model's arguments among them, ``revision`` too, so that of the rows has a name of its own.
    ``style``: ``chat`` gives the message that --apply_chat_template wraps, ``paper`` the paper's plain prompt.
    Raises UserError as ``benchmarks.load`` does.
    """
    datasets = importlib.import_module("datasets")  # lm-eval depends on it
    if source is None and source_revision is None and os.environ.get(DATA_VARIABLE):
        source = f"data:benchmarks/{benchmarks.find(benchmark).file}"
    retrieval = Retrieval(embedder=embedder) if embedder else None
    found = benchmarks.load(benchmark, source, source_revision, retrieval=retrieval)
    return {"test": datasets.Dataset.from_list([_row(question, style) for question in found])}


def prompt(doc: Mapping[str, Any]) -> str:
    """What the model is given."""
    return str(doc["prompt"])


def target(doc: Mapping[str, Any]) -> str:
    """The gold answer."""
    return str(doc["answer"])


def accuracy(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """``acc`` and the share of outputs without an answer, mean over a question's outputs."""
    means = overlap(doc, results)
    return {"acc": means["em"], "no_answer": means["no_answer"]}


def overlap(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """``em``, ``f1`` and the share of outputs without an answer, mean over a question's outputs."""
    verdicts = _verdicts(doc, results)
    return {
        "em": _mean([each.em for each in verdicts]),
        "f1": _mean([each.f1 for each in verdicts]),
        "no_answer": _mean([float(each.outcome == "none") for each in verdicts]),
    }


def _row(question: Question, style: Style) -> dict[str, str]:
    text = question.message if style == "chat" else question.prompt
    return {"prompt": text, "answer": question.answer, "question": json.dumps(asdict(question))}


def _verdicts(doc: Mapping[str, Any], results: Sequence[Any]) -> list[Verdict]:
    """One verdict for each output; repeats come as a list within the list."""
    kept = json.loads(doc["question"])
    question = Question(**{**kept, "aliases": tuple(kept["aliases"])})
    outputs = results[0] if results and isinstance(results[0], list) else results
    return [score(question, str(output)) for output in outputs]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
