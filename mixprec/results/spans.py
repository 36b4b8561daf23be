"""Traces with the spans in which they show a behaviour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mixprec.core.arguments import typed
from mixprec.report.formatting import integer
from mixprec.report.tables import Cell, Column, Table
from mixprec.results.base import Result
from mixprec.traces import spans, store
from mixprec.traces.spans import AnnotatedTrace


@dataclass(frozen=True, repr=False)
class Spans(Result):
    """spans.jsonl as a value: a sequence of annotated traces."""

    traces: tuple[AnnotatedTrace, ...]

    @classmethod
    @typed()
    def load(cls, path: str | Path) -> Spans:
        """Read spans.jsonl. Raises UserError as spans.load_spans does."""
        return cls(tuple(spans.load_spans(Path(path))))

    def save(self, path: str | Path) -> None:
        """Write spans.jsonl."""
        spans.save_spans(Path(path), self.traces)

    @cached_property
    def summary(self) -> spans.Summary:
        """How many spans there are, and what was skipped, by reason."""
        return spans.summarise(self.traces)

    def __len__(self) -> int:
        return len(self.traces)

    def __iter__(self) -> Iterator[AnnotatedTrace]:
        return iter(self.traces)

    def tables(self) -> Mapping[str, Table]:
        columns = [Column("behaviour", numeric=False), Column("spans"), Column("traces")]
        rows = [
            [Cell(name), Cell(integer(count)), Cell(integer(self.summary.traces_with[name]))]
            for name, count in self.summary.spans.items()
        ]
        return {f"{len(self.traces)} traces": Table(columns, rows)}

    def notes(self) -> list[str]:
        skipped = self.summary.skipped or "none"
        told = [f"traces without a span: {self.summary.traces_without_span}; skipped: {skipped}"]
        for each in {
            str(trace.by["prompt"]): trace.by for trace in self.traces if trace.by.get("kind") == "judge"
        }.values():
            version = each["prompt"]["version"]
            which = f"prompt {version}" if version else "a prompt of your own"
            told.append(f"judge: {each['model']}, {which} (sha256 {each['prompt']['sha256'][:12]})")
        return told

    def rows(self) -> list[dict[str, Any]]:
        """One row per span."""
        return [
            {"trace": each.trace.id, **span._asdict(), "text": each.trace.text[span.start : span.end]}
            for each in self.traces
            for span in each.spans
        ]

    def __repr__(self) -> str:
        return f"Spans({len(self.traces)} traces, {sum(self.summary.spans.values())} spans)"


@dataclass(frozen=True, repr=False)
class Imported(Result):
    """What another ``program``'s file gave: traces with or without spans. ``left_out``: what gave none, by reason."""

    path: Path
    program: str
    annotated: tuple[AnnotatedTrace, ...]
    traces: tuple[store.Trace, ...]
    left_out: Mapping[str, int]
    told: Sequence[str] = ()

    @property
    def spans(self) -> Spans:
        """The traces with spans; empty where the file has no labels."""
        return Spans(self.annotated)

    def tables(self) -> Mapping[str, Table]:
        if self.annotated:
            return self.spans.tables()
        texts = sum(trace.annotated is not None for trace in self.traces)
        columns = [Column("traces"), Column("with an annotator's text")]
        return {
            f"{self.path}, from {self.program}": Table(
                columns, [[Cell(integer(len(self.traces))), Cell(integer(texts))]]
            )
        }

    def notes(self) -> list[str]:
        left = [f"left out: {dict(sorted(self.left_out.items()))}"] if self.left_out else []
        return [*(self.spans.notes() if self.annotated else ()), *left, *self.told]

    def rows(self) -> list[dict[str, Any]]:
        """One row per span, or per trace without."""
        return self.spans.rows() if self.annotated else [vars(trace) for trace in self.traces]

    def __repr__(self) -> str:
        return f"Imported({len(self.annotated) + len(self.traces)} traces from {self.program})"


@dataclass(frozen=True, repr=False)
class Traces(Result):
    """A file of traces that a model wrote. ``others``: of prompts that weren't asked for; ``empty``: left out."""

    path: Path
    count: int
    others: int = 0
    empty: int = 0

    def tables(self) -> Mapping[str, Table]:
        columns = [Column("traces"), Column("of other prompts"), Column("left out: the model wrote nothing")]
        return {str(self.path): Table(columns, [[Cell(integer(n)) for n in (self.count, self.others, self.empty)]])}

    def rows(self) -> list[dict[str, Any]]:
        """One row per trace."""
        return [vars(trace) for trace in store.load(str(self.path))]

    def __repr__(self) -> str:
        return f"Traces({str(self.path)!r}: {self.count})"
