"""The page on which a person reviews annotations: the traces with their spans, in one file that asks no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mixprec.core import artifacts
from mixprec.core.version import VERSION
from mixprec.report.formatting import words
from mixprec.report.templates import render_page, script_json
from mixprec.traces.spans import ALL_BEHAVIOURS, AnnotatedTrace, CharSpan
from mixprec.traces.store import local_id

#: Colours of the behaviours, of light pages and of dark ones: apart in hue and in lightness (after Okabe and Ito).
COLOURS = {
    "backtracking": ("#d55e00", "#ff8a3d"),
    "uncertainty_estimation": ("#8e4fb5", "#c79be6"),
    "example_testing": ("#00845f", "#3ecfa4"),
    "adding_knowledge": ("#0b6cad", "#63b3ec"),
    "initializing": ("#7a6a00", "#d9c342"),
    "deduction": ("#6b7480", "#9aa5b1"),
}

#: Per trace: (start, end, KL in nats) of tokens, in characters of its text.
TokenKL = Sequence[Sequence[tuple[int, int, float]]]


def write_review(
    traces: Sequence[AnnotatedTrace], name: str, out: Path, kl: TokenKL | None = None, of: str = ""
) -> None:
    """Write the page of some traces. ``name``: what it calls the file; ``kl``: of ``of``, a compressed model.

    Raises UserError where it can't be written.
    """
    artifacts.write_text(out, render_review(traces, name, kl, of))


def render_review(traces: Sequence[AnnotatedTrace], name: str, kl: TokenKL | None = None, of: str = "") -> str:
    """The page as text; the same input gives the same bytes."""
    rows = [_row(each, kl[at] if kl else ()) for at, each in enumerate(traces)]
    data = {"name": name, "version": VERSION, "behaviours": list(ALL_BEHAVIOURS), "traces": rows}
    return render_page(
        "review.html.j2",
        name=name,
        of=of,
        with_kl=kl is not None,
        count=len(traces),
        spans=sum(len(each.spans) for each in traces),
        behaviours=[(each, words(each), COLOURS[each], number) for number, each in enumerate(ALL_BEHAVIOURS, 1)],
        data=script_json(json.dumps(data, ensure_ascii=False, sort_keys=True)),
    )


def _row(each: AnnotatedTrace, kl: Sequence[tuple[int, int, float]]) -> dict[str, Any]:
    """All of a row of spans.jsonl, so that the browser can write one. Offsets count characters, not UTF-16 units."""
    trace = each.trace
    found: dict[str, Any] = {
        "id": local_id(trace.id, trace.dataset),
        "dataset": trace.dataset,
        "prompt": trace.prompt,
        "output": trace.output,
        "spans": [_span(span) for span in each.spans],
        "skipped": each.skipped,
        "annotator": each.by,
    }
    if kl:
        found["kl"] = [[start, end, float(f"{value:.4g}")] for start, end, value in kl]
    return found


def _span(span: CharSpan) -> Mapping[str, Any]:
    return span._asdict()
