"""annotate: from traces to spans, without a model and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixprec.api.arguments import checked
from mixprec.core.arguments import typed
from mixprec.core.progress import OnStep, telling
from mixprec.pipeline.annotating import annotate_traces
from mixprec.recipe import TracesSpec
from mixprec.results.spans import Spans, Traces


@typed()
def annotate(
    traces: str | Path | Traces,
    *,
    preset: str = "paper",
    annotator: str = "given",
    train: Sequence[str | Path] = (),
    first: int | None = None,
    progress: OnStep | None = None,
) -> Spans:
    """Find each behaviour's spans in annotated traces (JSON lines, or bundled:attribution).

    ``preset``: the span rule, paper, released or aligned. ``annotator``: the file's annotations (given), cue
    phrases (cues), or a sentence classifier (classifier), which learns from the annotated traces of ``train`` too.
    ``first``: only so many traces.

    Raises UserError where no trace has a span of a scored behaviour.
    """
    source = str(traces.path if isinstance(traces, Traces) else traces)
    learned = tuple(map(str, train))
    spec = checked(
        TracesSpec, "annotate", source=source, preset=preset, annotator=annotator, train=learned, first=first
    )
    with telling(progress):
        return Spans(tuple(annotate_traces(spec, source)))
