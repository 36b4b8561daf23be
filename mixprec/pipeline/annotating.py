"""The first stage: from traces to spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mixprec.core import locks
from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.recipe import TracesSpec
from mixprec.traces import annotators, spans, store
from mixprec.traces.judge import prompts
from mixprec.traces.judge.spec import JudgeSpec


class NoSpans(UserError):
    """Traces hold no span of a behaviour that is scored."""


def annotate_traces(spec: TracesSpec, source: str, answers: Path | None = None) -> list[spans.AnnotatedTrace]:
    """The spans of traces from ``source``, with a bar: ``find_spans``, or a judge's, whose ``answers`` are kept there.

    Raises UserError where no trace has a span of a scored behaviour, and as the judge does.
    """
    path = store.locate(source)
    if spec.judge is not None:
        traces = store.load(source)[: spec.first]
        told = f"what the judge said is in {answers}" if answers else "look at what the judge says"
        return _checked(_judge(spec.judge, traces, answers), source, told)
    with bar("annotate", len(store.load(source)[: spec.first]), "traces") as advance:
        return find_spans(spec, source, path, advance)


def find_spans(
    spec: TracesSpec, source: str, path: Path, advance: Callable[[int], None] = lambda _: None
) -> list[spans.AnnotatedTrace]:
    """The spans of the traces in ``path``, which a recipe names ``source``: the file's own, those of its annotations,
    or what the annotator finds that the recipe names.

    Raises UserError where no trace has a span of a scored behaviour, with what was skipped and why.
    """
    if spec.annotator == "given" and annotators.has_spans(path):
        found = spans.load_spans(path)[: spec.first]
        advance(len(found))
        return _checked(found, source, "annotate the traces again")
    annotate = annotators.make(spec.annotator, spec.preset, spec.train)
    found = []
    for trace in store.load(str(path))[: spec.first]:
        found.append(annotate(trace))
        advance(1)
    return _checked(found, source)


def _checked(
    found: list[spans.AnnotatedTrace], source: str, remedy: str = "are the annotations of these traces?"
) -> list[spans.AnnotatedTrace]:
    summary = spans.summarise(found)
    if not any(summary.spans[behaviour] for behaviour in store.BEHAVIOURS):
        raise NoSpans(
            f"{source}: no trace has a span of {', '.join(store.BEHAVIOURS)}; skipped segments: "
            f"{summary.skipped or 'none'}; {remedy}"
        )
    return found


def _judge(spec: JudgeSpec, traces: Sequence[store.Trace], path: Path | None) -> list[spans.AnnotatedTrace]:
    # An HTTP client, which nothing else that annotates needs.
    from mixprec.evaluate.engines.openai import OpenAIEngine
    from mixprec.traces.judge.answers import Answers
    from mixprec.traces.judge.run import annotate

    prompt = prompts.load(spec.prompt)
    server = spec.server

    def engine() -> OpenAIEngine:
        too_long = "make piece or max_new_tokens smaller"
        return OpenAIEngine(server, place="judge.url", refusable=True, too_long=too_long)

    if path is None:
        return annotate(spec, prompt, engine, Answers(None), traces)
    with locks.target(path):
        return annotate(spec, prompt, engine, Answers(path), traces)


def answers_beside(spans_file: Path) -> Path:
    """Where a judge's answers lie that a file of spans is made of: spans.answers.jsonl beside spans.jsonl."""
    return spans_file.with_name(f"{spans_file.stem}.answers.jsonl")


def judged_by(spec: JudgeSpec) -> dict[str, Any]:
    """All that a judge's spans depend on. Raises UserError for a prompt that is none."""
    from mixprec.traces.judge.run import RULES  # with the progress of generations

    return {"rules": RULES, "prompt": prompts.load(spec.prompt).sha256, **spec.deciding}
