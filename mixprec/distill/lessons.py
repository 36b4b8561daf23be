"""What a student learns from: traces as tokens, and which of these the teacher wrote."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.distill.options import DistillOptions
from mixprec.evaluate.engines import templates
from mixprec.models.encoding import Encoder
from mixprec.traces import thinking
from mixprec.traces.store import Trace

#: What losses pass over, in torch and transformers.
IGNORED: Final = -100
#: What was counted, in words.
COUNTED: Final = {
    "traces": "traces in the file",
    "dropped": "left out: longer than the limit",
    "cut": "cut at the limit, without an end of text",
    "nothing_left": "left out: nothing that the teacher wrote is within the limit",
    "unfinished": "without an end of text: the thinking never ended",
    "straddling": "tokens of prompt and output at once, which don't count",
}


@dataclass(frozen=True)
class Lesson:
    """A trace of T ``tokens``. ``labels`` (T,): the token itself where the teacher wrote it, else IGNORED."""

    id: str
    prompt: str
    tokens: tuple[int, ...]
    labels: tuple[int, ...]

    @cached_property
    def written(self) -> int:
        """Tokens that count."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Lessons:
    """Traces for ``training`` and ``validation``; no prompt is in both. ``counts``: by the keys of COUNTED."""

    training: tuple[Lesson, ...]
    validation: tuple[Lesson, ...]
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """Fingerprint of all tokens and labels."""
        return artifacts.fingerprint(*([[one.tokens, one.labels] for one in each] for each in self._sets))

    @property
    def told(self) -> dict[str, int]:
        """Counts of traces and tokens, for cards and tables; what didn't happen is left out."""
        sizes = {
            f"{name}_{what}": sum(count(one) for one in lessons)
            for name, lessons in zip(("training", "validation"), self._sets, strict=True)
            for what, count in (("traces", lambda _: 1), ("tokens", lambda one: len(one.tokens)), ("written", _written))
        }
        return {key: self.counts[key] for key in COUNTED if self.counts[key]} | sizes

    @property
    def _sets(self) -> tuple[tuple[Lesson, ...], tuple[Lesson, ...]]:
        return self.training, self.validation


def _written(one: Lesson) -> int:
    return one.written


def draw(traces: Sequence[Trace], encoder: Encoder, options: DistillOptions, limit: int) -> Lessons:
    """Traces as lessons, ``options.validation`` of them or a few more held out: all traces of a prompt go together.

    ``limit``: most tokens of a trace. Raises UserError for longer traces as ``options.longer`` says, where no traces
    are left to train on, and as ``Encoder`` and ``templates.templated`` do.
    """
    counts = Counter(traces=len(traces))
    whole = [_lesson(trace, encoder, options.chat_template, counts) for trace in traces]
    longest = max((len(one.tokens) for one in whole), default=0)
    longer = sum(len(one.tokens) > limit for one in whole)
    if longer and options.longer == "refuse":
        raise UserError(
            f"distill: {longer} of {len(whole)} traces are longer than {limit} tokens, the longest has {longest}; "
            "give --longer drop to leave them out, --longer cut to cut them, or a higher --tokens"
        )
    kept = [one for one in (_within(one, limit, options.longer, counts) for one in whole) if one is not None]
    prompts = list(dict.fromkeys(one.prompt for one in kept))
    random.Random(options.seed).shuffle(prompts)
    held: set[str] = set()
    amounts = Counter(one.prompt for one in kept)
    while prompts and sum(amounts[prompt] for prompt in held) < options.validation:
        held.add(prompts.pop())
    if not prompts:
        raise UserError(
            f"distill: of {len(traces)} traces {len(kept)} can be used, on {len(amounts)} prompts, and beside "
            f"{options.validation} for validation none are left to train on; give more traces, or a lower --validation"
        )
    training, validation = (tuple(one for one in kept if (one.prompt in held) is side) for side in (False, True))
    return Lessons(training, validation, counts)


def _lesson(trace: Trace, encoder: Encoder, chat_template: bool, counts: Counter[str]) -> Lesson:
    """Prompt and output as one text, as all else here reads traces, and the end of text that a student has to learn."""
    prompt = templated(encoder, trace.prompt) if chat_template else trace.prompt
    found, begin = encoder(prompt + trace.output), len(prompt)
    labels = [id if begin <= start < end else IGNORED for id, (start, end) in zip(*found, strict=True)]
    counts["straddling"] += sum(start < begin < end for start, end in found.offsets)
    tokens, end = list(found.ids), encoder.eos
    if end is None:
        raise UserError(
            "distill: the student's tokenizer has no end of text, and the student would never learn to stop; set "
            "eos_token in its tokenizer_config.json"
        )
    opened = thinking.opening(prompt) is not None
    if thinking.parts(trace.output, opened).state == "open":
        counts["unfinished"] += 1
    elif tokens[-1] != end:
        tokens.append(end)
        labels.append(end)
    labels[0] = IGNORED  # nothing predicts it
    return Lesson(trace.id, trace.prompt, tuple(tokens), tuple(labels))


def templated(encoder: Encoder, prompt: str) -> str:
    """The prompt as the user's turn. A tag at its end that opens the thinking goes behind the template, which may have
    opened it already."""
    tag = thinking.opening(prompt)
    own = prompt if tag is None else prompt.rstrip().removesuffix(tag).rstrip()
    made = templates.templated(encoder.tokenizer, [{"role": "user", "content": own}])
    return made if tag is None or thinking.opening(made) is not None else f"{made}{tag}\n"


def _within(one: Lesson, limit: int, longer: str, counts: Counter[str]) -> Lesson | None:
    """The lesson within the limit; None where it is left out."""
    if len(one.tokens) > limit:
        counts["cut" if longer == "cut" else "dropped"] += 1
        if longer == "drop":
            return None
        one = Lesson(one.id, one.prompt, one.tokens[:limit], one.labels[:limit])
    if not one.written:
        counts["nothing_left"] += 1
        return None
    return one
