"""summary.json: one row per variant, their paired differences, the top modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mixprec.core import artifacts
from mixprec.evaluate import bench, metrics
from mixprec.evaluate.likelihood import run as likelihoods
from mixprec.importance import artifact
from mixprec.pipeline.benchmarks import Benchmarks, baseline_of
from mixprec.pipeline.context import Context
from mixprec.pipeline.evaluation import Evaluator


def summary(
    run: Context,
    importance: dict[str, Any] | None,
    rows: Mapping[str, Any],
    evaluator: Evaluator | None,
    benchmarks: Benchmarks | None,
) -> dict[str, Any]:
    """All but the provenance; ``rows``: variant -> what is known of it."""
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "recipe": run.name,
        "title": run.recipe.title,
        "model": run.recipe.model.id,
        "evaluation": evaluator.described if evaluator else None,
        "variants": rows,
        "differences": _differences(run, list(rows)) if evaluator else {},
        **_asked(run, rows, benchmarks),
        "pages": {name: name for name in ("sensitivity", "ablation") if getattr(run.recipe, name) is not None},
        "behaviours": artifact.top_modules(importance) if importance else {},
    }


def _asked(run: Context, rows: Mapping[str, Any], benchmarks: Benchmarks | None) -> dict[str, Any]:
    """What there is of benchmarks, by the protocol: what was generated, or how likely answers are."""
    if benchmarks is None:
        return {"benchmarks": None}
    if benchmarks.protocol.protocol == "likelihood":
        return {"benchmarks": None, "likelihood": _compared(run, rows, "likelihood", "rules", likelihoods.differences)}
    return {"benchmarks": _compared(run, rows, "benchmarks", "scoring_rules", bench.differences)}


def _compared(
    run: Context,
    rows: Mapping[str, Any],
    what: str,
    rules: str,
    differences: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]],
) -> dict[str, Any]:
    """The protocol, and every variant's paired differences to the baseline: the first variant that keeps all.

    ``what``: whose results, which say under ``rules`` by which version of the rules they were scored.
    """
    baseline = baseline_of({name: row["modules_quantized"] for name, row in rows.items()})
    results = {name: artifacts.read_json(run.out / "variants" / name / f"{what}.json") for name in rows}
    return {
        "protocol": results[baseline]["protocol"],
        "scoring_rules": results[baseline][rules],
        "baseline": baseline,
        "differences": {
            name: differences(results[baseline], found) for name, found in results.items() if name != baseline
        },
    }


def _differences(run: Context, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """first -> second -> paired difference of their mean KLs, for every pair of variants."""
    passages_of = {
        name: artifacts.read_json(run.out / "variants" / name / "result.json")["kl_by_passage"] for name in names
    }
    return {
        first: {
            second: metrics.kl_difference(passages_of[first], passages_of[second])
            for second in names
            if second != first
        }
        for first in names
    }
