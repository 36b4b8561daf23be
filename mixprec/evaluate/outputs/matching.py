"""Rows of outputs to the questions that they answer, and to passes; what doesn't fit is refused or counted."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import BENCHMARKS, Question, digest
from mixprec.evaluate.generations import Key, Record
from mixprec.evaluate.outputs.files import OutputFile
from mixprec.evaluate.outputs.rows import Row, integer_of
from mixprec.evaluate.scoring.text import mend
from mixprec.traces import thinking

_LONGEST_ID = 100
_PREMISES = re.compile(r"Premise: (.*?)\n\*{7}", re.DOTALL)


class Options(NamedTuple):
    """``first``: the number of the first row in an index. ``repeats``: rows that repeat a question are further passes.

    ``partial``: rows that match no question are left out. ``in_order``: rows without any name are taken as they come.
    """

    first: int = 0
    repeats: bool = False
    partial: bool = False
    in_order: bool = False


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


class _Found(NamedTuple):
    row: Row
    question: Question


#: What rows are known by, and what gives a row's question.
_Way = tuple[str, Callable[[Row], Question | None]]


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
        way, found, strange = _to_questions(rows, questions, options)
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


def _to_questions(
    rows: Sequence[Row], questions: Sequence[Question], options: Options
) -> tuple[str, list[_Found], list[Row]]:
    """By what a file's rows are known, those that match a question, and those that match none."""
    prompts = _Prompts(questions)
    best: tuple[str, list[_Found], list[Row]] = ("id", [], list(rows))
    for way, of in _ways(rows, questions, options, prompts):
        found = [(row, of(row)) for row in rows]
        hits = [_Found(row, question) for row, question in found if question is not None]
        if len(hits) > len(best[1]):
            best = (way, hits, [row for row, question in found if question is None])
        if not best[2]:
            break
    _check_prompts(best[1], best[0], prompts)
    confirmed = best[0] != "prompt" and bool(best[1]) and all(prompts.of(row) for row, _ in best[1])
    return (f"{best[0]} and prompt" if confirmed else best[0], *best[1:])


def _ways(rows: Sequence[Row], questions: Sequence[Question], options: Options, prompts: _Prompts) -> list[_Way]:
    """What rows may be known by, in the order in which it is tried: a name, and what finds a row's question by it."""
    by_id = {question.id: question for question in questions}
    numbers = {str(number + options.first): question for number, question in enumerate(questions)}
    ways: list[_Way] = [
        ("id", lambda row: by_id.get(row.id or "")),
        ("end of the id", lambda row: next((by_id[end] for end in _ends(row.id or "") if end in by_id), None)),
        ("index", lambda row: prompts.agreeing(row, numbers.get(str(row.number)))),
        ("id as an index", lambda row: prompts.agreeing(row, numbers.get(row.id or ""))),
        ("prompt", prompts.only),
    ]
    if len({re.sub(r"\d+$", "", row.id or "") for row in rows}) == 1:  # "request-12"
        end = re.compile(r"\d*$")
        ways.insert(
            4, ("number of the id", lambda row: prompts.agreeing(row, numbers.get(end.findall(row.id or "")[0])))
        )
    if options.in_order and all(row.id is None and row.number is None and row.prompt is None for row in rows):
        if len(rows) != len(questions):
            raise UserError(f"{rows[0].where}: {len(rows)} rows without names, not {len(questions)} as the questions")
        place = {row.where: question for row, question in zip(rows, questions, strict=True)}
        return [("order", lambda row: place[row.where])]
    return ways


def _check_prompts(found: Sequence[_Found], way: str, prompts: _Prompts) -> None:
    """Raises UserError for a row whose prompt is that of another question."""
    for row, question in found:
        asked = prompts.of(row)
        if asked and question not in asked:
            other = prompts.only(row) or asked[0]
            raise UserError(
                f"{row.where}: is {question.id!r} by its {way}, but its prompt is that of {other.id!r}; the rows "
                "are in another order, or of another version of the benchmark"
            )


def _ends(name: str) -> Iterator[str]:
    """What may be a question's id at the end of a name: "folio/1014", "aime-2024-II-4"; "request-12" only counts."""
    for sign in re.finditer(r"[/:|\s]|[-_.](?!\d+$)", name[-_LONGEST_ID:]):
        yield name[-_LONGEST_ID:][sign.end() :]


class _Prompts:
    """Questions by the texts of prompts. A row's prompt is looked up once."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._texts = [(question, _cores(question)) for question in questions]
        self._known: dict[str, list[Question]] = {}

    def of(self, row: Row) -> list[Question]:
        """The questions whose text stands in a row's prompt, also among examples in front of the question."""
        if row.prompt is None:
            return []
        if row.prompt not in self._known:
            prompt = _letters(row.prompt)
            self._known[row.prompt] = [q for q, cores in self._texts if all(core in prompt for core in cores)]
        return self._known[row.prompt]

    def only(self, row: Row) -> Question | None:
        """The one question that a prompt asks; of those whose text is a part of another's, the longer."""
        held = self.of(row)
        found = [(cores, question) for question, cores in self._texts if question in held]
        whole = [q for cores, q in found if not any(cores != other and _within(cores, other) for other, _ in found)]
        return whole[0] if len(whole) == 1 else None

    def agreeing(self, row: Row, question: Question | None) -> Question | None:
        """The question that a number stands for, unless the row's prompt is another's: tools count their own rows."""
        return question if row.prompt is None or question in self.of(row) else None


def _cores(question: Question) -> tuple[str, ...]:
    """What any prompt to a question must hold, without the instructions around it."""
    message = str(question.extra.get("closed_book") or question.message)
    if question.kind == "truth" and (premises := _PREMISES.search(message)):
        return _letters(premises[1]), _letters(str(question.extra["conclusion"]))
    if question.kind == "letter":
        message = message.partition("\n")[2]
    return (_letters(str(question.extra.get("question") or message)),)


def _within(parts: Sequence[str], whole: Sequence[str]) -> bool:
    return all(part in each for part, each in zip(parts, whole, strict=True))


def _letters(text: str) -> str:
    """Letters and digits alone, with the LaTeX that someone read as control characters."""
    return re.sub(r"[\W_]+", "", mend(text)).lower()


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


def _passes(found: Sequence[_Found], seeded: bool, options: Options) -> dict[tuple[str, int], tuple[Row, Record]]:
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
