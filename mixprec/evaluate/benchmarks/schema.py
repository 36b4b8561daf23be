"""What a question is, and what a benchmark must say of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from mixprec.core.errors import UserError

#: How an answer is scored: an integer, one of three truth values, the letter of an option, a few words, or an
#: expression that equals the right one.
Kind = Literal["integer", "truth", "letter", "words", "expression"]

#: What opens the model's thinking; the paper's prompts end with it, without any chat template.
THINK = "<think>\n"


@dataclass(frozen=True)
class Question:
    """One question with its gold answer.

    ``message`` is what a person would send, ``prompt`` the paper's text: the message and the opening of the thinking.
    ``answer`` as scoring compares it: ``"33"``, ``"True"``, ``"A"``, ``"Apple Corps"``; ``aliases`` count as right too.
    ``extra`` holds what some benchmarks have besides: ``options`` (letter -> text), ``conclusion`` (FOLIO);
    ``question``, ``paragraphs`` (title, text) and ``supporting``, numbers of those it rests on (MuSiQue);
    ``passages`` and ``closed_book``, the message without them (RAG).
    """

    id: str
    benchmark: str
    kind: Kind
    message: str
    prompt: str
    answer: str
    aliases: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> str:
        """The question alone, without passages and instructions where the benchmark tells them apart."""
        return str(self.extra.get("question") or self.message)


class Row(NamedTuple):
    """A row as its file has it; ``where`` names file and row in errors, ``number`` counts from 0."""

    benchmark: str
    number: int
    values: Mapping[str, Any]
    where: str

    def text(self, column: str) -> str:
        """A column's text. Raises UserError where it is missing, no text or blank."""
        value = self.value(column, str)
        if not value.strip():
            raise UserError(f"{self.where}: column {column!r} is empty")
        return str(value)

    def value(self, column: str, *kinds: type) -> Any:
        """A column's value. Raises UserError where it is missing or of another type."""
        if column not in self.values:
            raise UserError(f"{self.where}: column {column!r} is missing; there are {', '.join(map(str, self.values))}")
        value = self.values[column]
        if not isinstance(value, kinds) or isinstance(value, bool):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{self.where}: column {column!r} holds {type(value).__name__}, no {wanted}")
        return value

    def refuse(self, column: str, value: object, wanted: str) -> UserError:
        """The error that a column's value is not what it must be."""
        return UserError(f"{self.where}: column {column!r}: {value!r} is no gold answer here; expected {wanted}")


class HubOrigin(NamedTuple):
    """Where the hub has a benchmark; ``gated``: its terms must be accepted first."""

    dataset: str
    split: str
    name: str | None = None
    gated: bool = False


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: where its rows lie, which columns they have, and how one becomes a question.

    ``rows`` and ``digest`` are those of the paper's version (``catalogue.digest``), ``file`` its usual name on disk.
    No digest: the paper has no such benchmark, and a commit of the hub has to be named. No hub: it comes from a file.
    """

    name: str
    title: str
    metric: Literal["accuracy", "em_f1"]
    rows: int
    digest: str
    file: str
    columns: tuple[str, ...]
    hub: HubOrigin | None
    parse: Callable[[Row], Question]
