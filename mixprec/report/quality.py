"""How well each variant's modules were solved: errors of weights and outputs, damping raised, fallbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

from mixprec.compress.coverage import coverage
from mixprec.compress.module import ModuleReport
from mixprec.compress.options import ExpertOptions
from mixprec.plan.schema import Plan
from mixprec.plan.sensitivity import Choice
from mixprec.report.formatting import ABSENT, integer, percent, significant
from mixprec.report.tables import Cell, Column, Table


def quality_table(summary: Mapping[str, Any]) -> Table:
    """One row per variant that changes modules; columns that no variant has anything to say in are left out."""
    known = {
        name: variant["quality"] for name, variant in (summary.get("variants") or {}).items() if variant.get("quality")
    }
    columns = [Column("variant", numeric=False), Column("weight error, median"), Column("worst module", numeric=False)]
    rows = [[Cell(name), _share(entry["weight_error"]), _worst(entry, "weight")] for name, entry in known.items()]
    if any(entry["output_error"] is not None for entry in known.values()):
        columns += [Column("output error, median"), Column("worst module", numeric=False)]
        for row, entry in zip(rows, known.values(), strict=True):
            row += [_share(entry["output_error"]), _worst(entry, "output")]
    counted = (
        ("zeros", "zeros"),
        ("retries", "damping raised"),
        ("fallbacks", "fallbacks"),
        ("starved", "experts of few tokens"),
    )
    for key, title in counted:
        if any(entry.get(key) for entry in known.values()):
            columns.append(Column(title))
            for row, entry in zip(rows, known.values(), strict=True):
                row.append(_share(entry[key] or None) if key == "zeros" else Cell(str(entry.get(key, 0))))
    if any(entry.get("tuned") is not None for entry in known.values()):
        columns += [Column("squared error of blocks, tuned / solved"), Column("modules that tuning left")]
        for row, entry in zip(rows, known.values(), strict=True):
            ratio = entry.get("tuned")
            row += [_share(ratio), Cell(ABSENT if ratio is None else str(entry["untuned"]))]
    courses = [(summary.get("variants") or {})[name].get("tune") for name in known]
    if any(courses):
        columns.append(Column("validation KL, tuned"))
        for row, course in zip(rows, courses, strict=True):
            row.append(Cell(f"{significant(course['before'])} → {significant(course['after'])}" if course else ABSENT))
    return Table(columns, rows)


def coverage_table(reports: Mapping[str, ModuleReport], least: int = ExpertOptions().least) -> Table:
    """Calibration tokens that came to each layer's experts; empty where nobody looked at any."""
    titles = ("layer", "experts", "tokens, fewest", "median", "most", f"experts below {least}")
    rows = []
    for layer in coverage(reports):
        counts = sorted(layer.tokens)
        numbers = (layer.layer, len(counts), counts[0], int(median(counts)), counts[-1], layer.starved(least))
        rows.append([Cell(integer(number)) for number in numbers])
    return Table([Column(title) for title in titles], rows)


def _share(value: float | None) -> Cell:
    return Cell(ABSENT if value is None else percent(value))


def _worst(entry: Mapping[str, Any], kind: str) -> Cell:
    worst = entry[f"worst_{kind}"]
    return Cell(worst["label"], percent(worst["error"])) if worst else Cell(ABSENT)


def formats_in(plan: Plan) -> Table:
    """How many modules a plan puts into each format, by which method; those that it changes."""
    changed = [plan.treatments[address] for address in plan.changed]
    known = Counter((str(Choice(format=found.format, sparsity=found.sparsity)), found.method) for found in changed)
    titles = ("format", "method", "modules")
    rows = [[Cell(text) for text in (*kind, str(count))] for kind, count in known.items()]
    return Table([Column(title, numeric=title == "modules") for title in titles], rows)


def worst_table(reports: Mapping[str, ModuleReport], count: int = 5) -> Table:
    """The modules with the largest errors of their outputs, or of their weights where no method looked at inputs."""
    titles = ("module", "format", "method", "weight error", "output error", "retries")
    worst = sorted(reports.items(), key=lambda item: -(item[1].output_error or item[1].relative_error))[:count]
    rows = []
    for address, report in worst:
        error = ABSENT if report.output_error is None else f"{report.output_error:.4f}"
        method = f"{report.method}, then {report.fallback}" if report.fallback else report.method
        texts = (address, report.format, method, f"{report.relative_error:.4f}", error, str(report.retries))
        rows.append([Cell(text) for text in texts])
    return Table([Column(title, numeric=index > 2) for index, title in enumerate(titles)], rows)
