"""The stage that annotates traces once more, and compares what both annotations make important."""

from __future__ import annotations

from typing import Any

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.importance import RULES
from mixprec.importance import agreement as rankings
from mixprec.pipeline.context import Context
from mixprec.pipeline.importance import attributed, opened
from mixprec.traces import agreement as two_annotations
from mixprec.traces import spans
from mixprec.traces.store import BEHAVIOURS


def agree(run: Context, stamp: str | None) -> dict[str, Any]:
    """The recipe's ``agreement``, in agreement/agreement.json: how far two annotations of the same traces agree, and
    how alike the importances of both rank the modules; empty where the recipe has no such part.

    ``stamp``: fingerprint of the recipe's own importance. Raises UserError where the second annotation lacks a trace,
    or has another text.
    """
    spec, traces, asked = run.recipe.agreement, run.recipe.traces, run.recipe.importance
    if spec is None:
        return {}
    assert traces is not None  # the recipe is checked for both
    assert asked is not None
    folder = run.out / "agreement"
    first = spans.load_spans(run.out / "spans.jsonl")
    second, annotated = run.annotate(spec.of(traces), folder / "spans.jsonl", "annotate/agreement")
    pairs = two_annotations.pair(first, second)
    if pairs.only_first:
        raise UserError(
            f"agreement: {spec.source or traces.source}: {pairs.only_first} of {len(first)} traces are not annotated "
            "there; give an annotation of all of them"
        )
    other = asked.model_copy(update={"compare": (), "beyond_linear": False})
    _, scored = attributed(run, other, run.model, pairs.second, annotated, folder, "attribute/agreement")
    path = folder / "agreement.json"

    def make() -> None:
        data: dict[str, Any] = {"schema_version": artifacts.SCHEMA_VERSION}
        data |= {"names": {"first": _who(traces), "second": _who(spec)}, "scored": list(BEHAVIOURS)}
        data |= two_annotations.compare(pairs, asked.resamples)
        data["importance"] = rankings.compare(
            opened(run.model, asked), run.out / "importance", folder, len(first), asked.preset, asked.resamples
        )
        artifacts.write_json(path, data)

    run.stages.do("agreement", RULES, [stamp, scored, asked.resamples], [path], make)
    return artifacts.read_versioned(path)


def _who(spec: Any) -> str:
    """Who annotated, in words."""
    if spec.judge is not None:
        return f"{spec.judge.model} at temperature {spec.judge.temperature:g}"
    return f"the annotations of {spec.source}" if spec.annotator == "given" and spec.source else str(spec.annotator)
