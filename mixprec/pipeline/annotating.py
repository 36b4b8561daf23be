"""The first stage: from annotated traces to spans."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.recipe import TracesSpec
from mixprec.traces import annotators, spans, store


def annotate_traces(spec: TracesSpec, source: str) -> list[spans.AnnotatedTrace]:
    """``find_spans`` with a bar."""
    traces = store.load(source)[: spec.first]
    with bar("annotate", len(traces), "traces") as advance:
        return find_spans(spec, source, traces, advance)


def find_spans(
    spec: TracesSpec, source: str, traces: Sequence[store.Trace], advance: Callable[[int], None] = lambda _: None
) -> list[spans.AnnotatedTrace]:
    """The spans of ``traces`` from ``source``: of their annotations, or by the annotator that the recipe names.

    Raises UserError where no trace has a span of a scored behaviour, with what was skipped and why.
    """
    annotate = annotators.make(spec.annotator, spec.preset, spec.train)
    found = []
    for trace in traces:
        found.append(annotate(trace))
        advance(1)
    summary = spans.summarise(found)
    if not any(summary.spans[behaviour] for behaviour in store.BEHAVIOURS):
        raise UserError(
            f"{source}: no trace has a span of {', '.join(store.BEHAVIOURS)}; skipped segments: "
            f"{summary.skipped or 'none'}; are the annotations of these traces?"
        )
    return found
