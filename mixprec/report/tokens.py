"""The trace viewer's data: held-out traces with their spans, and the KL of every token for each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.report.folder import RunFolder
from mixprec.report.formatting import words
from mixprec.report.review import COLOURS
from mixprec.traces.spans import AnnotatedTrace


class Viewer(NamedTuple):
    """``data`` goes into the page as JSON. ``traces``: those that are shown, of ``of``; ``cut`` of them end early."""

    data: Mapping[str, Any]
    behaviours: Sequence[tuple[str, str, tuple[str, str]]]
    variants: Sequence[str]
    traces: Sequence[str]
    of: int
    cut: int


def viewer(run: RunFolder) -> Viewer | None:
    """None where the run keeps no KL of single tokens, or was evaluated on no traces.

    Raises UserError where the variants were measured on other tokens than one another, or than the traces.
    """
    known = {name: found for name, found in run.token_kl.items() if found["traces"] and not _zero(found)}
    if not known or not run.held_out:
        return None
    first = next(iter(known.values()))
    for name, found in known.items():
        if _places(found) != _places(first) or found["of"] != len(run.held_out):
            raise UserError(
                f"{run.name}/variants/{name}/tokens.json: is not of the traces in evaluation/spans.jsonl; run the "
                "recipe again"
            )
    rows = [
        _row(run.held_out[number], {name: each["traces"][number] for name, each in known.items()})
        for number in range(len(first["traces"]))
    ]
    seen = {span.behaviour for each in run.held_out for span in each.spans}
    return Viewer(
        data={"traces": rows},
        behaviours=[(name, words(name), colours) for name, colours in COLOURS.items() if name in seen],
        variants=list(known),
        traces=[row["id"] for row in rows],
        of=first["of"],
        cut=sum(len(row["text"]) < len(each.trace.text) for row, each in zip(rows, run.held_out, strict=False)),
    )


def _row(each: AnnotatedTrace, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A trace as far as its tokens were measured. ``at``: characters of each token; ``kl``: variant -> of each."""
    tokens = next(iter(found.values()))["tokens"]
    end = int(tokens[-1][1]) if tokens else len(each.trace.text)
    return {
        "id": each.trace.id,
        "prompt": min(len(each.trace.prompt), end),
        "text": each.trace.text[:end],
        "spans": [list(span) for span in each.spans if span.end <= end],
        "at": [token[:2] for token in tokens],
        "kl": {name: [token[2] for token in row["tokens"]] for name, row in found.items()},
    }


def _places(found: Mapping[str, Any]) -> list[list[list[int]]]:
    return [[token[:2] for token in row["tokens"]] for row in found["traces"]]


def _zero(found: Mapping[str, Any]) -> bool:
    """Whether it is the original beside itself."""
    return all(token[2] == 0 for row in found["traces"] for token in row["tokens"])
