"""Rows of outputs to a benchmark and its passes; what doesn't fit is refused or counted."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import BENCHMARKS, Question, digest
from mixprec.evaluate.generations import Key, Record
from mixprec.evaluate.outputs.asked import Found, Options, to_questions
from mixprec.evaluate.outputs.files import OutputFile
from mixprec.evaluate.outputs.rows import Row, integer_of
from mixprec.traces import thinking


@dataclasses.dataclass(frozen=True)
class Matched:
    """The outputs to a benchmark. ``asked``: its questions with an output in every pass, in order.

    ``missing``: questions without any output; ``incomplete``: those that lack one in some pass; ``unmatched``: rows
    that match no question. ``ways``: file -> by what its rows were matched, and which passes they are.
    """

    asked: list[Question]
    records: dict[Key, Record]
    seeds: tuple[int, ...]
    missing: int
    incomplete: int
    unmatched: int
    ways: dict[str, tuple[str, tuple[int, ...]]]


def benchmarks_in(files: Sequence[OutputFile]) -> list[str]:
    """The benchmarks that rows, or else files, are named after, in the catalogue's order.

    Raises UserError where there are none.
    """
    named = {name for file in files for row in file.rows if (name := _benchmark_of(row, file))}
    if not named:
        raise UserError(f"{files[0].path}: names no benchmark; say which with --benchmark: {', '.join(BENCHMARKS)}")
    return [name for name in BENCHMARKS if name in named]


def _benchmark_of(row: Row, file: OutputFile) -> str | None:
    return _named(row.benchmark or "") or _named(file.path.name)


def _named(text: str) -> str | None:
    """The benchmark that a name speaks of: ``AIME_2024``, ``samples_mixprec_folio_2026.jsonl``, ``MuSiQue100``."""
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    short = {
        "aime_2024": "aime(?:20)?24",
        "folio": "(?<!port)folio",
        "temporal_sequences": "temporalsequences",
        "musique_rag": "musiquerag",
    }
    found = [name for name in reversed(BENCHMARKS) if re.search(short.get(name, name), letters)]
    return found[0] if found else None


def match(
    files: Sequence[OutputFile], benchmark: str, questions: Sequence[Question], options: Options, several: bool
) -> Matched:
    """The outputs in ``files`` to a benchmark's questions.

    Rows are matched by id, else by index, else by the text of their prompt; a prompt that is another question's is an
    error. Passes are the seeds that rows name, else the outputs of one row, and files that answer a question again.
    ``several``: other benchmarks are scored as well, so that rows must say which one they belong to. Raises UserError
    for rows that match no question, questions that are answered twice in a pass, and what was made from other
    questions.
    """
    ours = _chosen(files, benchmark, several)
    _check_origin([row for _, rows in ours for row in rows], benchmark, questions)
    seeded = _seeded([row for _, rows in ours for row in rows])
    records: dict[Key, Record] = {}
    places: dict[Key, str] = {}
    ways: dict[str, tuple[str, tuple[int, ...]]] = {}
    unmatched = 0
    for file, rows in ours:
        way, found, strange = to_questions(rows, questions, options)
        problem = _strange(strange, rows, way, benchmark, questions) if strange else ""
        if strange and ("--first-index" in problem or not options.partial):  # left out, the others would be off by one
            raise UserError(problem)
        unmatched += len(strange)
        made = _passes(found, seeded, options)
        shift = 0 if seeded else _free(made, records)
        for (name, number), (row, record) in made.items():
            key = Key(name, number + shift)
            if key in places:
                raise UserError(f"{row.where}: question {name!r} with seed {key.seed} stands in {places[key]} too")
            records[key], places[key] = record, row.where
        ways[str(file.path)] = (way, tuple(sorted({number + shift for _, number in made})))
    seeds = tuple(sorted({key.seed for key in records}))
    counts = Counter(key.id for key in records)
    asked = [question for question in questions if counts[question.id] == len(seeds)]
    if not asked:
        raise UserError(
            f"{files[0].path}: no question of {benchmark} has an output in each of the {len(seeds)} passes; score them "
            "one by one, or where seeds are no passes: --key seed="
        )
    missing = sum(counts[question.id] == 0 for question in questions)
    return Matched(asked, records, seeds, missing, len(questions) - missing - len(asked), unmatched, ways)


def _chosen(files: Sequence[OutputFile], benchmark: str, several: bool) -> list[tuple[OutputFile, list[Row]]]:
    """The files with rows to a benchmark, and these rows. Raises UserError where there are none."""
    ours = [(file, [row for row in file.rows if _belongs(row, file, benchmark, several)]) for file in files]
    ours = [(file, rows) for file, rows in ours if rows]
    if not ours and not several:  # what a file is called says less than --benchmark
        ours = [(file, list(file.rows)) for file in files if not any(_named(row.benchmark or "") for row in file.rows)]
    if not ours:
        problem = f"{files[0].path}: no outputs to {benchmark} in {_count(len(files), 'file')}"
        if several:
            problem += (
                "; of several benchmarks rows (key 'benchmark') or files' names say which is theirs: "
                "name them, or score one at a time"
            )
        raise UserError(problem)
    return ours


def _seeded(rows: Sequence[Row]) -> bool:
    """Whether rows name their seeds. Raises UserError where only some do."""
    without = [row for row in rows if row.seed is None]
    if without and len(without) < len(rows):
        raise UserError(f"{without[0].where}: has no seed, other rows have one; give all of them one, or none")
    return not without


def _belongs(row: Row, file: OutputFile, benchmark: str, several: bool) -> bool:
    """Whether a row answers a benchmark: as it says, or where nothing is said, if no other is scored."""
    named = _benchmark_of(row, file)
    alike = {named, benchmark} == {"musique", "musique_rag"} and not several
    return named == benchmark or alike or (named is None and not several)


def _check_origin(rows: Sequence[Row], benchmark: str, questions: Sequence[Question]) -> None:
    """Generations of our own say which questions and which model they were made from."""
    known = [row for row in rows if row.origin is not None]
    if known and len(known) < len(rows):
        other = next(row for row in rows if row.origin is None)
        raise UserError(f"{other.where}: is none of mixprec's generations, {known[0].where} is; score them one by one")
    wanted = digest(questions)
    for row in known:
        assert row.origin is not None and known[0].origin is not None
        if benchmark != "musique_rag" and row.origin["rows"] != wanted:
            raise UserError(f"{row.where}: made from other questions of {benchmark} than these; give --files theirs")
        for name in ("model", "prompts", "sampling"):
            if row.origin[name] != known[0].origin[name]:
                raise UserError(
                    f"{row.where}: {name} is {row.origin[name]!r}, of {known[0].where} {known[0].origin[name]!r}; "
                    "score them one by one, and put them side by side with mixprec tables"
                )


def _strange(
    strange: Sequence[Row], rows: Sequence[Row], way: str, benchmark: str, questions: Sequence[Question]
) -> str:
    counted = {integer_of(row.id) if row.number is None else row.number for row in rows}
    names = ", ".join(repr(row.id if row.id is not None else row.number) for row in strange[:3])
    hint = "they have no id, index or prompt; where they are in the questions' order: --in-order"
    if any(row.id is not None or row.number is not None for row in strange):
        hint = f"for example {names}; its {len(questions)} questions have names like {questions[0].id!r}"
        if any(row.prompt is not None for row in strange):
            hint += "; their prompts hold none of its questions"
        if counted == set(range(1, len(questions) + 1)):
            hint += "; where they count from 1: --first-index 1"
    where = f"{strange[0].where}: {_count(len(strange), 'row')} of {len(rows)} match no question of {benchmark}"
    return f"{where} (matched by {way}): {hint}. --partial leaves such rows out"


def _passes(found: Sequence[Found], seeded: bool, options: Options) -> dict[tuple[str, int], tuple[Row, Record]]:
    """(question, pass within the file) -> row and record."""
    made: dict[tuple[str, int], tuple[Row, Record]] = {}
    seen: dict[str, list[Row]] = {}
    for row, question in found:
        before = seen.setdefault(question.id, [])
        if any(other.outputs == row.outputs and other.raw and row.raw for other in before):
            continue  # lm-eval writes a row for each of its filters
        if seeded and len(row.outputs) > 1:
            raise UserError(f"{row.where}: has a seed and {len(row.outputs)} outputs; one row for each, or no seed")
        start = row.seed if seeded else sum(len(other.outputs) for other in before)
        assert start is not None
        repeated = before and not (seeded and all(other.seed != row.seed for other in before))
        if repeated and (seeded or not options.repeats):
            raise UserError(
                f"{row.where}: question {question.id!r} stands in {before[0].where} too; give rows a seed, or take "
                "repeated ones as further passes: --repeats"
            )
        before.append(row)
        for number, output in enumerate(row.outputs, start):
            made[question.id, number] = (row, Record(output.text, output.finish, output.tokens, None))
    return made


def _free(made: Iterable[tuple[str, int]], records: Mapping[Key, Any]) -> int:
    """The first pass from which on none of these questions is answered yet: parts of a pass go together."""
    shift = 0
    made = list(made)
    while any(Key(name, number + shift) in records for name, number in made):
        shift += 1
    return shift


def opened(rows: Iterable[Row], tags: tuple[thinking.Tag, ...]) -> bool | None:
    """Whether the prompts open a thinking, None where no row says what the model saw.

    Raises UserError where some do and others don't.
    """
    found = {thinking.opening(row.prompt, tags) is not None for row in rows if row.raw and row.prompt is not None}
    if len(found) > 1:
        raise UserError("some of the prompts open a thinking and others don't; score their files one by one")
    return found.pop() if found else None


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
