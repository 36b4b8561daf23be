"""The model cards of a run's checkpoints: recipe, calibration data, and results beside the original's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from huggingface_hub import EvalResult

from mixprec.checkpoint.integrity import card_of
from mixprec.checkpoint.modelcard import Told, model_card
from mixprec.core import artifacts
from mixprec.evaluate.benchmarks import find
from mixprec.models.modelfiles import README
from mixprec.pipeline.context import Context
from mixprec.plan.schema import Plan
from mixprec.report.formatting import ABSENT, integer, interval, percent, significant
from mixprec.report.tables import Cell, Column, Table, to_markdown

_Row = Mapping[str, Any]
_Show = Callable[[Any], str]
#: Metric -> what a reader sees; how its value reads; the original's, where that is so by definition.
_FIDELITY: dict[str, tuple[str, _Show, str | None]] = {
    "perplexity": ("perplexity", lambda value: significant(value, 4), None),
    "kl_mean": ("KL to the original, mean, nats per token", significant, "0"),
    "top1_agreement": ("top-1 agreement with the original", percent, "100%"),
}
#: The hub's names of our metrics.
_HUB_METRICS = {"accuracy": "accuracy", "em": "exact_match", "f1": "f1"}


def write_cards(run: Context, plans: Mapping[str, Plan], rows: Mapping[str, _Row], evaluation: _Row | None) -> None:
    """Write README.md into the checkpoint of each variant that has one; ``rows``: all variants of the summary."""
    original = next((row for row in rows.values() if not row["modules_quantized"]), {})
    source = run.model.folder
    for name, plan in plans.items():
        if plan.changed:
            checkpoint = run.out / "variants" / name / "checkpoint"
            told = Told(
                run.recipe.model.base_model,
                card_of(checkpoint).get("calibration"),
                evaluated(rows[name], original, evaluation),
                list(_scores(rows[name])),
                run.text,
            )
            text = model_card(plan, run.model.decoder, run.model.config, source, run.recipe.checkpoint.written, told)
            artifacts.write_text(checkpoint / README, text)


def evaluated(row: _Row, original: _Row, evaluation: _Row | None) -> str:
    """A variant's results in Markdown, with 95% intervals, beside the original's where a variant keeps everything."""
    lines = [*_fidelity(row, original, evaluation or {}), *_benchmarks(row, original)]
    columns = [Column("measured on", numeric=False), Column("metric", numeric=False)]
    table = to_markdown(Table([*columns, Column("this model"), Column("original")], lines))
    return f"{table}\nIn brackets: 95% bootstrap intervals." if lines else ""


def _fidelity(row: _Row, original: _Row, evaluation: _Row) -> Iterator[list[Cell]]:
    on_traces = bool((evaluation.get("traces") or {}).get("tokens"))
    parts = {"": "held-out traces" if on_traces else "text"} | ({"text": "text"} if on_traces else {})
    for part, where in parts.items():
        ours, theirs = ((each.get(part) or {}) if part else each for each in (row, original))
        for key, (title, show, by_definition) in _FIDELITY.items():
            if ours.get(key) is not None:
                other = by_definition or (show(theirs[key]) if theirs.get(key) is not None else ABSENT)
                measured = f"{where}, {integer(ours['tokens'])} tokens"
                cells = [Cell(measured), Cell(title), Cell(show(ours[key]), interval(ours.get(f"{key}_ci")))]
                yield [*cells, Cell(other)]


def _benchmarks(row: _Row, original: _Row) -> Iterator[list[Cell]]:
    for name, entry in (row.get("benchmarks") or {}).items():
        for metric in _HUB_METRICS:
            if isinstance(entry.get(metric), Mapping):
                found, base = entry[metric], ((original.get("benchmarks") or {}).get(name) or {}).get(metric)
                what = f"{metric}, {found['n']} questions × {found['seeds']} seeds"
                yield [Cell(entry["title"]), Cell(what), _score(found), _score(base) if base else Cell(ABSENT)]


def _score(found: _Row) -> Cell:
    ci = found.get("ci")
    return Cell(percent(found["mean"]), f"[{percent(ci[0])}, {percent(ci[1])}]" if ci else "")


def _scores(row: _Row) -> Iterator[EvalResult]:
    """What the hub lists of a model's benchmarks, in percent; of the paper's questions alone."""
    for name, entry in (row.get("benchmarks") or {}).items():
        hub = find(name).hub
        if not entry.get("paper_questions") or hub is None:
            continue
        for metric, its_name in _HUB_METRICS.items():
            if isinstance(entry.get(metric), Mapping):
                yield EvalResult(
                    task_type="text-generation",
                    dataset_type=hub.dataset,
                    dataset_name=entry["title"],
                    dataset_config=hub.name,
                    dataset_split=hub.split,
                    metric_type=its_name,
                    metric_value=round(100 * entry[metric]["mean"], 2),
                )
