"""The benchmarks of the paper, and where their rows come from: a JSONL file, or the hub."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from mixprec.core import artifacts, hub
from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import questions
from mixprec.evaluate.benchmarks.schema import Benchmark, HubOrigin, Question, Row
from mixprec.evaluate.scoring import expressions

_AIME = Benchmark(
    name="aime_2024",
    title="AIME 2024",
    metric="accuracy",
    rows=30,
    digest="85e033b3b242a89e165e2afd504b76ebd8780433e5319067248fd5fb8c9a0a9a",
    file="aime_2024.jsonl",
    columns=("ID", "Problem", "Answer"),
    hub=HubOrigin("Maxwell-Jia/AIME_2024", "train"),
    parse=questions.aime,
)
_FOLIO = Benchmark(
    name="folio",
    title="FOLIO",
    metric="accuracy",
    rows=203,
    digest="53050180d77b9a071f1d8886e41ffe33f4243e92f2eb43b4f11ec5aa6ab759e9",
    file="folio.jsonl",
    columns=("premises", "conclusion", "label", "example_id"),
    hub=HubOrigin("yale-nlp/FOLIO", "validation", gated=True),
    parse=questions.folio,
)
_TEMPORAL = Benchmark(
    name="temporal_sequences",
    title="Temporal Sequences",
    metric="accuracy",
    rows=250,
    digest="00d00fb7506fe47e0f73db580581df0fff95edc6468a53d0ffc72dd40cbf72dc",
    file="temporal_sequences.jsonl",
    columns=("input", "target"),
    hub=HubOrigin("lukaemon/bbh", "test", name="temporal_sequences"),
    parse=questions.temporal_sequences,
)
_MUSIQUE = Benchmark(
    name="musique",
    title="MuSiQue",
    metric="em_f1",
    rows=100,
    digest="106330de2a8adc574b0ba9c9941fe535bcbf9a4ff75a882a46f0928fa49fd79c",
    file="musique.jsonl",
    columns=("id", "paragraphs", "question", "answer", "answer_aliases"),
    hub=HubOrigin("dgslibisey/MuSiQue", "validation"),
    parse=questions.musique,
)
#: The same questions; the passages are put in front afterwards (``retrieval.with_nearest``).
_MUSIQUE_RAG = dataclasses.replace(_MUSIQUE, name="musique_rag", title="MuSiQue (RAG)")

_AIME_2025 = Benchmark(
    name="aime_2025",
    title="AIME 2025",
    metric="accuracy",
    rows=30,
    digest="",
    file="aime_2025.jsonl",
    columns=("problem", "answer"),
    hub=HubOrigin("yentinglin/aime_2025", "train"),
    parse=questions.competition,
)
#: Problems of several years, as arXiv 2504.04823 has them.
_AIME_120 = dataclasses.replace(
    _AIME_2025, name="aime_120", title="AIME-120", rows=120, file="aime_120.jsonl", hub=None
)
_MATH = Benchmark(
    name="math_500",
    title="MATH-500",
    metric="accuracy",
    rows=500,
    digest="",
    file="math_500.jsonl",
    columns=("problem", "answer"),
    hub=HubOrigin("HuggingFaceH4/MATH-500", "test"),
    parse=questions.math,
)
_GPQA = Benchmark(
    name="gpqa_diamond",
    title="GPQA Diamond",
    metric="accuracy",
    rows=198,
    digest="",
    file="gpqa_diamond.jsonl",
    columns=("Question", *questions.GPQA_OPTIONS),
    hub=HubOrigin("Idavidrein/gpqa", "train", name="gpqa_diamond", gated=True),
    parse=questions.gpqa,
)

#: Every benchmark by its name: those of the paper in the order of its tables, then others.
BENCHMARKS: dict[str, Benchmark] = {
    each.name: each for each in (_AIME, _FOLIO, _TEMPORAL, _MUSIQUE, _MUSIQUE_RAG, _AIME_2025, _AIME_120, _MATH, _GPQA)
}


def find(name: str) -> Benchmark:
    """The benchmark of a name. Raises UserError where there is none."""
    if name not in BENCHMARKS:
        raise UserError(f"benchmarks: {name!r}: there are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def read(name: str, source: str | None, revision: str | None) -> list[Question]:
    """A benchmark's questions in the order of their source, MuSiQue's without passages.

    ``source`` and ``revision`` as ``loading.load`` takes them, but for ``data:``. Of the hub's MuSiQue the paper's 100
    questions are taken, in its order; of a file, all.
    Raises UserError for unreadable files, missing columns, duplicate ids, gold answers that don't parse, a hub dataset
    whose content is not the paper's where no ``revision`` pins it.
    """
    benchmark = find(name)
    if name == "math_500":
        expressions.require()
    if source is not None and not source.startswith("hub:"):
        path = Path(source).expanduser()
        if revision is not None:
            raise UserError(f"benchmarks: {name}: a file has no revision; leave it out, or the source {source}")
        return parse(benchmark, artifacts.read_jsonl(path), str(path))
    if benchmark.hub is None:
        raise UserError(f"benchmarks: {name}: the hub has no dataset of it; give a file as source")
    if revision is None and not benchmark.digest:
        raise UserError(f"benchmarks: {name}: give the commit of the hub's dataset as revision, or a file as source")
    dataset = source.removeprefix("hub:") if source else benchmark.hub.dataset
    found = parse(benchmark, _hub_rows(benchmark, dataset, revision), f"{dataset} ({benchmark.hub.split})")
    if revision is None and digest(found) != benchmark.digest:
        raise UserError(
            f"benchmarks: {name}: {dataset} has other rows on the hub now than the paper used "
            f"({len(found)} rows, digest {digest(found)[:12]}, not {benchmark.digest[:12]}); "
            "pin a commit with revision, or give a file"
        )
    return found


def parse(benchmark: Benchmark, rows: Iterable[Mapping[str, Any]], where: str) -> list[Question]:
    """Rows to questions. Raises UserError naming file, row and column; see ``read``."""
    found: dict[str, Question] = {}
    for number, values in enumerate(rows):
        row = Row(benchmark.name, number, values, f"{where}: row {number + 1}")
        if number == 0:
            _check_columns(benchmark, values, where)
        question = benchmark.parse(row)
        if question.id in found:
            raise UserError(f"{row.where}: id {question.id!r} stands twice; ids must be unique")
        found[question.id] = question
    if not found:
        raise UserError(f"{where}: no rows; {benchmark.name} has {benchmark.rows}")
    return list(found.values())


def digest(found: Sequence[Question]) -> str:
    """SHA-256 over ids, messages and gold answers: the same questions, whatever file they came from."""
    return artifacts.fingerprint([[each.id, each.message, each.answer, list(each.aliases)] for each in found])


def is_papers(found: Sequence[Question]) -> bool:
    """Whether these are all the questions the paper asked, and no others, whatever passages stand in front of them."""
    closed = [dataclasses.replace(each, message=each.extra.get("closed_book", each.message)) for each in found]
    return bool(found) and digest(closed) == find(found[0].benchmark).digest


def _check_columns(benchmark: Benchmark, values: Mapping[str, Any], where: str) -> None:
    """A file of another benchmark is told as such, not as a column that is missing."""
    if all(column in values for column in benchmark.columns):
        return
    others = [each.name for each in BENCHMARKS.values() if set(each.columns) <= set(values)]
    if others:
        raise UserError(f"{where}: these are rows of {others[0]}, not of {benchmark.name}; give its own file")


def _hub_rows(benchmark: Benchmark, dataset: str, revision: str | None) -> list[Mapping[str, Any]]:
    origin = benchmark.hub
    assert origin is not None
    gate = " (its terms must be accepted on the hub first: hf auth login)" if origin.gated else ""
    data = hub.load_dataset(
        dataset,
        revision,
        name=origin.name,
        split=origin.split,
        where=f"benchmarks: {benchmark.name}: {dataset}{gate}",
        instead=f"give a JSONL file as source, as data:benchmarks/{benchmark.file}",
    )
    rows = list(data)
    return _papers_sample(rows, dataset) if benchmark.columns == _MUSIQUE.columns else rows


def _papers_sample(rows: Sequence[Mapping[str, Any]], dataset: str) -> list[Mapping[str, Any]]:
    """The paper's 100 of MuSiQue's rows, in its order (file random_100_musique.json of its repository)."""
    known = {str(row.get("id")): row for row in rows}
    wanted = resources.files(__package__).joinpath("musique_ids.txt").read_text(encoding="utf-8").split()
    missing = [identifier for identifier in wanted if identifier not in known]
    if missing:
        raise UserError(
            f"benchmarks: musique: {dataset} lacks {len(missing)} of the paper's questions, as {missing[0]}"
        )
    return [known[identifier] for identifier in wanted]
