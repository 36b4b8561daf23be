"""The report: one HTML file that needs no network, and pictures as files beside it.

A page's data are worked out here and in the files that this one imports; each section has a template of its own in
``sections/``, each behaviour of the page a script in ``scripts/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mixprec.core import artifacts, publish
from mixprec.report import origin, pagecharts, tokens
from mixprec.report.benchmarks import at_k_table, overview, protocol_line, results_of
from mixprec.report.cells import cell_map
from mixprec.report.charts import variants_figure
from mixprec.report.compare import verdict
from mixprec.report.comparison import Compared, compare
from mixprec.report.folder import RunFolder, read_run
from mixprec.report.formatting import ABSENT, integer, plural, words
from mixprec.report.grids import importance_grids, shift_grids
from mixprec.report.heatmap import still_heatmap
from mixprec.report.layouts import plan_map
from mixprec.report.likelihood import NOTE, guesses, likelihood_table, likelihoods_of
from mixprec.report.outputs import shown
from mixprec.report.quality import quality_table
from mixprec.report.rankings import (
    agreement_table,
    annotations_table,
    movers_table,
    preset_table,
    shifts_table,
    stability_table,
)
from mixprec.report.style import save_figure
from mixprec.report.tables import Cell, Column, Table, behaviour_table, top_modules_table, variant_table
from mixprec.report.templates import render_page, script_json
from mixprec.report.validity import cells_table, ranking_table, reading

#: What a page may ask of an importance artifact that doesn't say.
_IMPORTANCE = {"preset": "", "compared_preset": "", "cut_traces": 0, "resamples": 0}


def write_report(run: Path) -> Path:
    """Write report.html, importance.png and .svg, and variants.png into a run's folder; gives the page.

    Reads what ``folder.read_run`` reads. The same inputs give the same bytes. A picture that this run has no numbers
    for is removed: none of an earlier run stays.

    Raises UserError where an input is missing, broken or of another schema version, or the disk is full.
    """
    found = read_run(run)
    still = still_heatmap(importance_grids(found.importance)) if found.importance else None
    _save_or_remove(run / "importance", still, ("png", "svg"))
    _save_or_remove(run / "variants", variants_figure(found.summary), ("png",))
    page = run / "report.html"
    artifacts.write_text(page, render_report(found))
    return page


def write_comparison(folders: Sequence[Path], page: Path) -> Compared:
    """Write the page of several runs.

    Raises UserError as ``comparison.compare``, and where it can't be written.
    """
    found = compare(folders)
    artifacts.write_text(page, render_comparison(found))
    return found


def render_comparison(found: Compared) -> str:
    """The page of several runs as text."""
    return render_report(found.run, found)


def render_report(run: RunFolder, compared: Compared | None = None) -> str:
    """The page as text; parts that the run doesn't have are left out. ``compared``: what ``run`` is put together of."""
    summary, importance = run.summary, run.importance
    benchmarks, results = summary.get("benchmarks") or {}, results_of(summary)
    likely = likelihoods_of(summary)
    return render_page(
        "template.html.j2",
        summary={"title": "", "recipe": "", "model": "", "distilled": None} | dict(summary),
        compared=_compared(compared) if compared else None,
        verdict=verdict(summary) if compared is None or compared.one_model else [],
        heatmap=cell_map(importance_grids(importance)) if importance else None,
        importance=_IMPORTANCE | dict(importance) if importance else None,
        tops=top_modules_table(summary),
        variants=variant_table(summary),
        behaviours=behaviour_table(summary),
        damage=pagecharts.damage_rows(summary),
        by_behaviour=pagecharts.behaviour_rows(summary),
        pareto=pagecharts.pareto_points(pagecharts.whole(summary)),
        plans=plan_map(run.layouts),
        without_layout=[name for name in summary.get("variants") or {} if name not in run.layouts],
        quality=quality_table(summary),
        scores=overview(results, benchmarks.get("differences")),
        at_k=at_k_table(results),
        likelihood=likelihood_table(likely, (summary.get("likelihood") or {}).get("differences")),
        likelihood_note=NOTE,
        guesses=guesses(likely),
        protocol=protocol_line(benchmarks),
        baseline=benchmarks.get("baseline", ""),
        compute=pagecharts.compute_rows(summary),
        outputs=shown(run.outputs, benchmarks.get("baseline", "")),
        viewer=_viewer(run),
        shifts=[_shift(each) for each in (run.shift, *run.shifts.values()) if each],
        shifted=shifts_table(summary),
        of_their_own=any(each.get("own") for each in (summary.get("shifts") or {}).values()),
        presets=preset_table(importance or {}),
        stability=stability_table(importance or {}),
        unstable=[
            words(name)
            for name, entry in ((importance or {}).get("behaviours") or {}).items()
            if entry.get("traces") and not entry.get("stability")
        ],
        spans=_spans_table(importance or {}),
        annotations=annotations_table(summary),
        measured_on=_measured_on(summary),
        skipped=_counted(importance),
        skipped_held_out=_counted(summary.get("evaluation")),
        options=flatten((importance or {}).get("options") or {}),
        ablation=_ablation(run.ablation) if run.ablation else None,
        pages={name: f"{folder}/{name}.html" for name, folder in (summary.get("pages") or {}).items()},
        origin=origin.in_words(run) if compared is None else [],
        # By the recipe's name: a page is the same wherever its run lies.
        command=origin.command(run, summary.get("recipe") if compared is None else None),
        provenance=flatten(summary.get("provenance") or {}),
        recipe=run.recipe,
    )


def _compared(found: Compared) -> dict[str, Any]:
    """The runs of a comparison in a table, their origins in words, and what can't be compared."""
    columns = ("run", "what it asks", "model", "variants", "mixprec")
    rows = [
        [
            Cell(name),
            Cell(run.summary.get("title") or run.summary.get("recipe") or ABSENT),
            Cell(run.summary.get("model") or ABSENT),
            Cell(integer(len(run.summary.get("variants") or {}))),
            Cell((run.summary.get("provenance") or {}).get("mixprec") or ABSENT),
        ]
        for name, run in found.runs.items()
    ]
    return {
        "runs": Table([Column(title, numeric=title == "variants") for title in columns], rows),
        "origins": {name: origin.in_words(run) for name, run in found.runs.items()},
        "commands": [told for name, run in found.runs.items() if (told := origin.command(run))],
        "left_out": found.left_out,
        "one_model": found.one_model,
    }


def _ablation(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the report shows of an ablation; its own page has the rest."""
    return {
        "method": result["method"],
        "cells": cells_table(result),
        "ranking": ranking_table(result),
        "reading": reading(result),
        "plots": pagecharts.scatter_points(result),
    }


def _shift(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "first": found["first"]["name"],
        "second": found["second"]["name"],
        "heatmap": cell_map(shift_grids(found, "net")),
        "movers": movers_table(found, "net"),
        "agreement": agreement_table(found),
    }


def _viewer(run: RunFolder) -> dict[str, Any] | None:
    found = tokens.viewer(run)
    if found is None:
        return None
    return found._asdict() | {"data": script_json(json.dumps(found.data, ensure_ascii=False))}


def _measured_on(summary: Mapping[str, Any]) -> list[str]:
    """What the metrics were measured on, with sizes."""
    names = {"traces": "held-out traces", "text": "text"}
    parts = {name: (summary.get("evaluation") or {}).get(name) or {} for name in names}
    return [
        f"{names[name]} ({plural(part['tokens'], 'token')}"
        + (f" in {plural(part['passages'], 'passage')})" if part.get("passages") else ")")
        for name, part in parts.items()
        if part.get("tokens")
    ]


def _counted(artifact: Mapping[str, Any] | None) -> dict[str, int]:
    """What an artifact says was skipped: reason -> count, empty ones left out."""
    return {reason: count for reason, count in ((artifact or {}).get("skipped") or {}).items() if count}


def _save_or_remove(stem: Path, figure: Figure | None, kinds: tuple[str, ...]) -> None:
    if figure is not None:
        save_figure(figure, stem, kinds)
        return
    for kind in kinds:
        publish.remove(stem.with_name(f"{stem.name}.{kind}"))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys and text: ``{"packages": {"torch": "2"}}`` gives ``packages.torch``."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        elif value is not None:
            flat[name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


def _spans_table(importance: Mapping[str, Any]) -> Table:
    """What the scores of each behaviour were computed from."""
    rows = [
        [Cell(words(behaviour)), *(Cell(integer(entry.get(key))) for key in ("spans", "traces", "tokens"))]
        for behaviour, entry in (importance.get("behaviours") or {}).items()
    ]
    return Table([Column("behaviour", numeric=False), Column("spans"), Column("traces"), Column("tokens")], rows)
