"""Ask a judge about traces: round after round, until every piece has an answer that can be used.

In each round all pieces that lack one are asked for at once. An answer that broke off, or left out text, comes of a
piece that is too long for the judge: its halves are asked for next. All else is asked again with what was wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixprec.core.errors import UserError
from mixprec.core.progress import Generating, console, generating
from mixprec.evaluate.engines.base import Engine, Request, derived_seed
from mixprec.traces import thinking
from mixprec.traces.judge import answers as store_of_answers
from mixprec.traces.judge import pieces as cutting
from mixprec.traces.judge.answers import Answer, Answers
from mixprec.traces.judge.pieces import Piece
from mixprec.traces.judge.prompts import Prompt
from mixprec.traces.judge.reading import Reading, read
from mixprec.traces.judge.spec import JudgeSpec
from mixprec.traces.spans import AnnotatedTrace, CharSpan
from mixprec.traces.store import Trace

#: Raised when the same answers give other spans.
RULES = 1
#: Faults of pieces that are too long for the judge, and the characters below which they are not halved any more.
_TOO_LONG, _SMALLEST = ("truncated", "lost"), 800
#: Characters of a refusal that are shown.
_SHOWN = 80


@dataclass
class _Part:
    """A piece of a trace on its way to an answer. ``best``: the reading that is used if no better one comes."""

    trace: int
    piece: Piece
    fault: str | None = None
    best: Reading | None = None
    done: bool = False

    def take(self, reading: Reading) -> None:
        """A new reading, which is better where it can be used, or finds more."""
        self.fault, self.done = reading.fault, reading.fault is None
        if self.done or self.best is None or reading.size > self.best.size:
            self.best = reading


@dataclass
class Tally:
    """What was asked for one trace, or for all: what went wrong by reason, and tokens where the server counts."""

    asked: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    prompt_tokens: int = 0

    def count(self, answer: Answer) -> None:
        self.asked += 1
        self.tokens += answer.tokens or 0
        self.prompt_tokens += answer.prompt_tokens or 0


class Judging:
    """One judge at work on some traces. ``engine`` is made only where something is left to ask."""

    def __init__(self, spec: JudgeSpec, prompt: Prompt, engine: Callable[[], Engine], answers: Answers) -> None:
        self.spec, self.prompt, self.answers = spec, prompt, answers
        self._make = engine
        self._engine: Engine | None = None
        self.new = Tally()
        self.refusal = ""

    def annotate(self, traces: Sequence[Trace]) -> list[AnnotatedTrace]:
        """The traces with spans in their reasoning (``thinking.reasoning``), tags left out.

        Raises UserError where the server stays away or refuses the request itself; what was answered is kept.
        """
        parts = [_Part(number, piece) for number, trace in enumerate(traces) for piece in self._cut(trace)]
        tallies = [Tally() for _ in traces]
        for attempt in range(self.spec.attempts):
            left = [part for part in parts if not part.done]
            if not left:
                break
            self._round(attempt, left, traces, tallies)
            if attempt + 1 < self.spec.attempts:
                parts = [half for part in parts for half in self._halved(part, traces[part.trace])]
        own: list[list[_Part]] = [[] for _ in traces]
        for part in parts:
            own[part.trace].append(part)
        return [self._whole(*each) for each in zip(traces, own, tallies, strict=True)]

    def _cut(self, trace: Trace) -> list[Piece]:
        return cutting.cut(trace.output, Piece(*thinking.reasoning(trace.output)), self.spec.piece)

    def _halved(self, part: _Part, trace: Trace) -> list[_Part]:
        if part.done or part.fault not in _TOO_LONG or part.piece.end - part.piece.start < _SMALLEST:
            return [part]
        found = part.best
        return [
            _Part(part.trace, half, None, found and found.within(half))
            for half in cutting.halves(trace.output, part.piece)
        ]

    def _round(self, attempt: int, left: Sequence[_Part], traces: Sequence[Trace], tallies: Sequence[Tally]) -> None:
        messages = [
            self.prompt.filled(traces[each.trace].output[each.piece.start : each.piece.end], each.fault)
            for each in left
        ]
        keys = [store_of_answers.asked(self.spec.model, each, self.spec.sampling, attempt) for each in messages]
        missing = {key: number for number, key in enumerate(keys) if self.answers.get(key) is None}
        if missing:
            there = [answer.tokens for key in keys if (answer := self.answers.get(key))]
            what = "judge" if attempt == 0 else f"judge, attempt {attempt + 1}"
            with generating(what, len(missing) + len(there), self.spec.max_new_tokens, there) as seen:
                self._ask(attempt, [(keys[at], messages[at], left[at]) for at in missing.values()], traces, seen)
        paid = set(keys)  # pieces with the same text share an answer
        for part, key in zip(left, keys, strict=True):
            answer = self.answers.get(key)
            assert answer is not None
            reading = read(answer.text, answer.finish, traces[part.trace].output, part.piece)
            if reading.fault == "refused" and answer.text.strip():
                self.refusal = self.refusal or answer.text
            part.take(reading)
            if key in paid:
                paid.remove(key)
                tallies[part.trace].count(answer)
            tallies[part.trace].faults[reading.fault or ""] += 1

    def _ask(
        self, attempt: int, asked: Sequence[tuple[str, str, _Part]], traces: Sequence[Trace], seen: Generating
    ) -> None:
        """Ask, and keep each answer as soon as it is there."""
        engine = self._engine = self._engine or self._make()
        requests, about = [], {}
        for key, message, part in asked:
            trace = traces[part.trace].id
            name = f"{trace}, characters {part.piece.start} to {part.piece.end}"
            requests.append(Request(name, message, derived_seed(attempt, message), chat=True))
            about[name] = (key, {"judge": self.spec.model, "trace": trace, **part.piece._asdict(), "attempt": attempt})
        for made in engine.generate(requests, self.spec.sampling, seen.tokens):
            key, facts = about[made.key]
            self.answers.add(key, made, facts)
            seen.output(made.tokens)
            self.new.count(Answer(made.output, made.finish, made.tokens, made.prompt_tokens))

    def _whole(self, trace: Trace, parts: Sequence[_Part], tally: Tally) -> AnnotatedTrace:
        """One trace put together, with what can't be used, and where the rest comes from."""
        readings = [part.best for part in parts if part.best is not None]
        skipped = sum((each.skipped for each in readings), Counter[str]())
        skipped["refused"] = sum(part.fault == "refused" and not (part.best and part.best.found) for part in parts)
        skipped["partial"] = sum(not part.done for part in parts) - skipped["refused"]
        skipped["no_reasoning"] = int(not parts)
        found = cutting.joined(trace.output, [part.piece for part in parts], [each.found for each in readings])
        shift = len(trace.prompt)
        spans = [CharSpan(each.behaviour, each.start + shift, each.end + shift) for each in found]
        faults = {fault: count for fault, count in sorted(tally.faults.items()) if fault}
        by = {
            "kind": "judge",
            **self.spec.deciding,
            "prompt": self.prompt.described,
            "rules": RULES,
            "pieces": len(parts),
            "answers": tally.asked,
            "faults": faults,
            "mended": sum(each.mended for each in readings),
            "prompt_tokens": tally.prompt_tokens,
            "tokens": tally.tokens,
        }
        return AnnotatedTrace(trace, spans, dict(sorted((+skipped).items())), by)


def told(spec: JudgeSpec, done: Sequence[AnnotatedTrace], new: Tally, refusal: str) -> list[str]:
    """What a user wants to know afterwards: answers, faults, tokens and cost, of this run and of all."""
    total = totals(each.by for each in done)
    faults = ", ".join(f"{name} {count}" for name, count in sorted(total.faults.items()))
    lines = [
        f"judge {spec.model}: {total.asked} answers, {new.asked} of them new; with faults: {faults or 'none'}",
        f"tokens: {total.prompt_tokens:,} of prompts, {total.tokens:,} of answers; "
        f"new: {new.prompt_tokens:,} and {new.tokens:,}",
    ]
    cost = spec.cost(total.prompt_tokens, total.tokens)
    if cost is not None:
        lines.append(f"cost: {cost:.4f}, of this run {spec.cost(new.prompt_tokens, new.tokens) or 0:.4f}")
    if refusal:
        lines.append(f"a refusal: {' '.join(refusal.split())[:_SHOWN]}")
    return lines


def totals(described: Any) -> Tally:
    """Of what traces say of their judge."""
    total = Tally()
    for each in described:
        by: Mapping[str, Any] = each
        total.asked += by.get("answers", 0)
        total.tokens += by.get("tokens", 0)
        total.prompt_tokens += by.get("prompt_tokens", 0)
        total.faults.update(by.get("faults", {}))
    return total


def annotate(
    spec: JudgeSpec, prompt: Prompt, engine: Callable[[], Engine], answers: Answers, traces: Sequence[Trace]
) -> list[AnnotatedTrace]:
    """The traces as a judge annotates them; tells what it took. Raises UserError as ``Judging.annotate`` does."""
    work = Judging(spec, prompt, engine, answers)
    try:
        done = work.annotate(traces)
    except UserError:
        if answers.path is not None and work.new.asked:
            console.print(f"{answers.path}: keeps the {work.new.asked} answers of this run", soft_wrap=True)
        raise
    for line in told(spec, done, work.new, work.refusal):
        console.print(line, soft_wrap=True)
    return done
