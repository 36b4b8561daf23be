"""How far two annotations of the same traces agree, in characters.

python scripts/span_agreement.py TRUTH.jsonl OTHER.jsonl

Both files come from ``mixprec annotate``. Characters that only one of them labels are left out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mixprec.core.errors import UserError
from mixprec.traces.spans import ALL_BEHAVIOURS, AnnotatedTrace, load_spans


def labels(annotated: AnnotatedTrace) -> list[str]:
    """The behaviour of every character of the trace's text, empty where there is none; the last span wins."""
    found = [""] * len(annotated.trace.text)
    for span in annotated.spans:
        found[span.start : span.end] = [span.behaviour] * (span.end - span.start)
    return found


def count(truth: Sequence[AnnotatedTrace], other: Sequence[AnnotatedTrace]) -> Counter[tuple[str, str]]:
    """Characters by (true label, other label), where there are both.

    Raises UserError where the files are not about the same traces.
    """
    counts: Counter[tuple[str, str]] = Counter()
    by_id = {annotated.trace.id: annotated for annotated in other}
    for annotated in truth:
        if annotated.trace.id not in by_id:
            raise UserError(f"trace {annotated.trace.id} is in one file only; annotate the same traces twice")
        pairs = zip(labels(annotated), labels(by_id[annotated.trace.id]), strict=True)
        counts.update(pair for pair in pairs if all(pair))
    return counts


def table(counts: Counter[tuple[str, str]]) -> str:
    """Precision and recall of the other file's labels, as Markdown."""
    lines = ["| behaviour | precision | recall | characters |", "|:--|--:|--:|--:|"]
    for behaviour in ALL_BEHAVIOURS:
        hits = counts[behaviour, behaviour]
        said = sum(n for (_, other), n in counts.items() if other == behaviour)
        true = sum(n for (truth, _), n in counts.items() if truth == behaviour)
        shares = [f"{hits / n:.2f}" if n else "–" for n in (said, true)]
        lines.append(f"| {behaviour} | {shares[0]} | {shares[1]} | {true:,} |")
    same = sum(n for (truth, other), n in counts.items() if truth == other)
    return "\n".join([*lines, "", f"{same / (counts.total() or 1):.2f} of {counts.total():,} characters agree."])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} TRUTH.jsonl OTHER.jsonl")
    try:
        print(table(count(*(load_spans(Path(name)) for name in sys.argv[1:]))))
    except UserError as problem:
        sys.exit(f"error: {problem}")
