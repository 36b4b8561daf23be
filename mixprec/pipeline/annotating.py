"""The first stage: from annotated traces to spans."""

from __future__ import annotations

from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.recipe import TracesSpec
from mixprec.traces import cues, spans, store


def annotate_traces(spec: TracesSpec, source: str) -> list[spans.AnnotatedTrace]:
    """Read traces and find the spans of their annotations, or of lexical cues where the recipe says so.

    Raises UserError where no trace has a span of a scored behaviour, with what was skipped and why.
    """
    traces = store.load(source)[: spec.first]
    found = []
    with bar("annotate", len(traces), "traces") as advance:
        for trace in traces:
            if spec.annotator == "cues":
                trace = store.Trace(trace.id, trace.dataset, trace.prompt, trace.output, cues.annotate_with_cues(trace))
            # Cues are written in reading order and verbatim: only the rule made for that loses none.
            found.append(spans.char_spans(trace, "aligned" if spec.annotator == "cues" else spec.preset))
            advance(1)
    summary = spans.summarise(found)
    if not any(summary.spans[behaviour] for behaviour in store.BEHAVIOURS):
        raise UserError(
            f"{source}: no trace has a span of {', '.join(store.BEHAVIOURS)}; skipped segments: "
            f"{summary.skipped or 'none'}; are the annotations of these traces?"
        )
    return found
