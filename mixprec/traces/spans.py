"""Where a trace shows a behaviour: from annotated segments to spans of characters, and on to spans of tokens.

All ranges are half-open. Character ranges count in ``trace.text`` (prompt and output), token ranges in the
tokenizer's encoding of it, special tokens included.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.traces import store
from mixprec.traces.alignment import Place, align
from mixprec.traces.annotate import Rule, Segment, parse
from mixprec.traces.matching import longest_block
from mixprec.traces.store import BEHAVIOURS, UNSCORED, Trace

#: Share of a segment that its longest block has to cover (arXiv 2504.02010, released code).
THRESHOLD = 0.90
ALL_BEHAVIOURS = (*BEHAVIOURS, *UNSCORED)


class CharSpan(NamedTuple):
    """Characters ``start`` to ``end`` of a trace's text show ``behaviour``."""

    behaviour: str
    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens ``start`` to ``end`` of a trace show ``behaviour``; ``end`` is one behind the last token."""

    behaviour: str
    start: int
    end: int


@dataclass(frozen=True)
class AnnotatedTrace:
    """A trace with its spans in the annotation's order, and how many segments have none, by reason.

    ``by``: what a judge says of itself and its answers, empty for other annotations.
    """

    trace: Trace
    spans: list[CharSpan]
    skipped: dict[str, int] = field(default_factory=dict)
    by: dict[str, Any] = field(default_factory=dict)


def char_spans(trace: Trace, rule: Rule, threshold: float = THRESHOLD) -> AnnotatedTrace:
    """Find the annotated segments in the trace.

    ``released`` and ``paper`` take difflib's longest block for each segment by itself, in prompt and output,
    or in the output alone; ``aligned`` places all segments together, in reading order (``alignment.align``).
    ``threshold`` is the share of a segment that has to be found, more than 0 and at most 1.

    Skipped besides what ``annotate.parse`` skips: ``low_coverage`` (released, paper), ``out_of_order`` and
    ``not_found`` (aligned). Raises UserError where the trace has no annotation.
    """
    spans, skipped = _found(trace, rule, threshold)
    return AnnotatedTrace(trace, list(spans.values()), dict(sorted(skipped.items())))


def _found(trace: Trace, rule: Rule, threshold: float) -> tuple[dict[int, CharSpan], Counter[str]]:
    """Spans by where their segments begin in the annotation, in its order; and what was skipped, by reason."""
    if trace.annotated is None:
        raise UserError(
            f"trace {trace.id!r} has no annotation; annotate it, or let the classifier do it (annotator: classifier)"
        )
    parsed = parse(trace.annotated, rule)
    prompt = len(trace.prompt)
    if rule == "released":
        places = [_covered(trace.text, segment, threshold, 0) for segment in parsed.segments]
    elif rule == "paper":
        places = [_covered(trace.output, segment, threshold, prompt) for segment in parsed.segments]
    else:
        found = align(trace.output, [segment.text for segment in parsed.segments], threshold)
        places = [Place(place.start + prompt, place.end + prompt, place.reason) for place in found]
    spans = {
        segment.position: CharSpan(segment.behaviour, place.start, place.end)
        for segment, place in zip(parsed.segments, places, strict=True)
        if not place.reason
    }
    return spans, parsed.skipped + Counter(place.reason for place in places if place.reason)


def _covered(text: str, segment: Segment, threshold: float, offset: int) -> Place:
    """A segment's longest block in ``text``, if it covers enough; ``offset`` is where the text begins."""
    block = longest_block(text, segment.text)
    reason = "" if block.size / len(segment.text) >= threshold else "low_coverage"
    return Place(offset + block.start, offset + block.start + block.size, reason)


def token_spans(
    spans: Iterable[CharSpan], offsets: Sequence[tuple[int, int]], limit: int
) -> tuple[list[TokenSpan], Counter[str]]:
    """Map spans of characters to spans of tokens.

    ``offsets`` are the characters of every token of the whole text, as a fast tokenizer gives them; special
    tokens, which have none, are (0, 0). ``limit`` is the number of tokens that the model gets to see. The
    first token holds the span's first character, the last one its last.

    Counted: ``no_token`` (a first or last character is in no token), ``beyond_context`` (the span ends behind
    ``limit``). Raises UserError where the offsets are not in order.
    """
    numbers = [number for number, (start, end) in enumerate(offsets) if end > start]
    starts = [offsets[number][0] for number in numbers]
    ends = [offsets[number][1] for number in numbers]
    if any(a > b for a, b in pairwise(starts)) or any(a > b for a, b in pairwise(ends)):
        raise UserError("the tokenizer's character offsets are not in order; spans need a fast tokenizer")
    found = []
    skipped: Counter[str] = Counter()
    for span in spans:
        first, last = bisect_right(ends, span.start), bisect_left(ends, span.end)
        if last >= len(ends) or starts[first] > span.start or starts[last] >= span.end:
            skipped["no_token"] += 1
        elif numbers[last] >= limit:
            skipped["beyond_context"] += 1
        else:
            found.append(TokenSpan(span.behaviour, numbers[first], numbers[last] + 1))
    return found, skipped


@dataclass(frozen=True)
class Summary:
    """What a set of annotated traces holds: spans, and traces with at least one, by behaviour."""

    traces: int
    traces_without_span: int
    spans: dict[str, int]
    traces_with: dict[str, int]
    skipped: dict[str, int]


def summarise(annotated: Sequence[AnnotatedTrace]) -> Summary:
    """Count spans by behaviour and what was skipped by reason."""
    spans = Counter(span.behaviour for each in annotated for span in each.spans)
    traces = Counter(behaviour for each in annotated for behaviour in {span.behaviour for span in each.spans})
    skipped: Counter[str] = Counter()
    for each in annotated:
        skipped.update(each.skipped)
    return Summary(
        len(annotated),
        sum(not each.spans for each in annotated),
        {behaviour: spans[behaviour] for behaviour in ALL_BEHAVIOURS},
        {behaviour: traces[behaviour] for behaviour in ALL_BEHAVIOURS},
        dict(sorted(skipped.items())),
    )


#: What became of an annotated section under ``aligned``, compared with ``released``.
OUTCOMES = ("same", "moved", "won", "lost")


def compare_rules(traces: Iterable[Trace], threshold: float = THRESHOLD) -> dict[str, Counter[str]]:
    """What the aligned rule wins over the released one: behaviour -> outcome -> number of sections.

    ``same``: both keep the section, at places that overlap; ``moved``: at places that don't; ``won``: only
    aligned keeps it; ``lost``: only released does. Sections are told apart by their place in the annotation,
    and counted under aligned's behaviour where both keep them.
    """
    outcomes: dict[str, Counter[str]] = {behaviour: Counter() for behaviour in ALL_BEHAVIOURS}
    for trace in traces:
        (ours, _), (theirs, _) = (_found(trace, rule, threshold) for rule in ("aligned", "released"))
        for position in ours.keys() | theirs.keys():
            mine, other = ours.get(position), theirs.get(position)
            outcomes[(mine or theirs[position]).behaviour][_outcome(mine, other)] += 1
    return outcomes


def _outcome(ours: CharSpan | None, theirs: CharSpan | None) -> str:
    if ours is None:
        return "lost"
    if theirs is None:
        return "won"
    return "same" if ours.start < theirs.end and theirs.start < ours.end else "moved"


def save_spans(path: Path, annotated: Iterable[AnnotatedTrace]) -> None:
    """Write annotated traces as JSON lines, atomically; a trace without a span keeps its row."""
    rows = (
        {
            "id": store.local_id(each.trace.id, each.trace.dataset),
            "dataset": each.trace.dataset,
            "prompt": each.trace.prompt,
            "output": each.trace.output,
            "spans": [span._asdict() for span in each.spans],
            "skipped": each.skipped,
        }
        | ({"annotator": each.by} if each.by else {})
        for each in annotated
    )
    artifacts.write_jsonl(path, rows)


def load_spans(path: Path) -> list[AnnotatedTrace]:
    """Read annotated traces.

    Raises UserError naming file, row and remedy for what ``store.load`` refuses, unknown behaviours and spans
    that are empty or reach out of the text.
    """
    traces = store.load(str(path))
    rows = artifacts.read_jsonl(path)
    return [
        _annotated(trace, row, f"{path}:{number} ({trace.id})")
        for number, (trace, row) in enumerate(zip(traces, rows, strict=True), 1)
    ]


def _annotated(trace: Trace, row: dict[str, Any], where: str) -> AnnotatedTrace:
    remedy = "make the file again with mixprec annotate"
    spans, skipped, by = row.get("spans"), row.get("skipped", {}), row.get("annotator", {})
    if not isinstance(spans, list):
        raise UserError(f"{where}: key 'spans' is missing or no list; {remedy}")
    if not isinstance(skipped, dict) or not all(isinstance(count, int) for count in skipped.values()):
        raise UserError(f"{where}: key 'skipped' is no object of counts; {remedy}")
    if not isinstance(by, dict):
        raise UserError(f"{where}: key 'annotator' is no object; {remedy}")
    return AnnotatedTrace(
        trace,
        [_span(span, len(trace.text), f"{where}: span {at}", remedy) for at, span in enumerate(spans, 1)],
        skipped,
        by,
    )


def _span(span: Any, length: int, where: str, remedy: str) -> CharSpan:
    if not isinstance(span, dict) or span.keys() != {"behaviour", "start", "end"}:
        raise UserError(f"{where}: expected the keys behaviour, start, end; {remedy}")
    if span["behaviour"] not in ALL_BEHAVIOURS:
        known = ", ".join(ALL_BEHAVIOURS)
        raise UserError(f"{where}: behaviour {span['behaviour']!r} is unknown, known are {known}; {remedy}")
    start, end = span["start"], span["end"]
    if not (type(start) is int and type(end) is int and 0 <= start < end <= length):
        raise UserError(
            f"{where}: start {start!r}, end {end!r} is no range in the text's {length} characters; {remedy}"
        )
    return CharSpan(span["behaviour"], start, end)
