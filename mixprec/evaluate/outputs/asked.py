"""Which question a row answers: by its id, its index, or the text of its prompt."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mixprec.core.errors import UserError
from mixprec.evaluate.benchmarks import Question
from mixprec.evaluate.outputs.rows import Row
from mixprec.evaluate.scoring.text import mend

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


class Found(NamedTuple):
    row: Row
    question: Question


#: What rows are known by, and what gives a row's question.
_Way = tuple[str, Callable[[Row], Question | None]]


def to_questions(
    rows: Sequence[Row], questions: Sequence[Question], options: Options
) -> tuple[str, list[Found], list[Row]]:
    """By what a file's rows are known, those that match a question, and those that match none."""
    prompts = _Prompts(questions)
    best: tuple[str, list[Found], list[Row]] = ("id", [], list(rows))
    for way, of in _ways(rows, questions, options, prompts):
        found = [(row, of(row)) for row in rows]
        hits = [Found(row, question) for row, question in found if question is not None]
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


def _check_prompts(found: Sequence[Found], way: str, prompts: _Prompts) -> None:
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
