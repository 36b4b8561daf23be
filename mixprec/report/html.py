"""The report: one HTML file that needs no network, and the same pictures as files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

from mixprec.core import artifacts, publish
from mixprec.core.escaping import visible
from mixprec.importance import artifact
from mixprec.report.benchmarks import at_k_table, overview, protocol_line, results_of
from mixprec.report.charts import behaviours_figure, variants_figure
from mixprec.report.compare import verdict
from mixprec.report.compute import compute_figure
from mixprec.report.formatting import integer, percent, plural, scorer, significant, words
from mixprec.report.grids import OUTLINE, Grids, importance_grids, summary_line
from mixprec.report.heatmap import interactive_heatmap, still_heatmap
from mixprec.report.quality import quality_table
from mixprec.report.rankings import preset_table, stability_table
from mixprec.report.shapes import read_ablation, read_summary
from mixprec.report.style import DARK, LIGHT, Theme, render, save_figure
from mixprec.report.tables import Cell, Column, Table, behaviour_table, top_modules_table, variant_table
from mixprec.report.validity import cells_table, ranking_table, reading, scatter

#: What a page may ask of an importance artifact that doesn't say.
_IMPORTANCE = {"preset": "", "compared_preset": "", "cut_traces": 0, "resamples": 0}


def write_report(run: Path) -> Path:
    """Write report.html, importance.png and .svg, and variants.png into a run's folder; gives the page.

    Reads summary.json, importance/importance.json and recipe.yaml where they are, and the ablation that summary.json
    names. The same inputs give the same bytes. A picture that this run has no numbers for is removed: none of an
    earlier run stays.

    Raises UserError where an input is missing, broken or of another schema version, or the disk is full.
    """
    summary = read_summary(run / "summary.json")
    importance_path = run / "importance" / "importance.json"
    importance = artifact.load(importance_path) if importance_path.exists() else None
    recipe_path = run / "recipe.yaml"
    recipe = artifacts.read_text(recipe_path) if recipe_path.exists() else None

    pages: Mapping[str, str] = summary.get("pages") or {}
    ablation = read_ablation(run / pages["ablation"] / "ablation.json") if "ablation" in pages else None

    still = still_heatmap(importance_grids(importance)) if importance else None
    _save_or_remove(run / "importance", still, ("png", "svg"))
    _save_or_remove(run / "variants", variants_figure(summary), ("png",))
    page = run / "report.html"
    artifacts.write_text(page, render_report(summary, importance, recipe, ablation))
    return page


def render_report(
    summary: Mapping[str, Any],
    importance: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    ablation: Mapping[str, Any] | None = None,
) -> str:
    """The page as text, from a loaded summary, importance artifact, recipe YAML and ablation; parts may be absent."""
    benchmarks, results = summary.get("benchmarks") or {}, results_of(summary)
    return render_page(
        "template.html.j2",
        summary={"title": "", "recipe": "", "model": ""} | dict(summary),
        verdict=verdict(summary),
        heatmap=heatmap_parts(importance_grids(importance)) if importance else None,
        importance=_IMPORTANCE | dict(importance) if importance else None,
        tops=top_modules_table(summary),
        variants=variant_table(summary),
        behaviours=behaviour_table(summary),
        quality=quality_table(summary),
        scores=overview(results, benchmarks.get("differences")),
        at_k=at_k_table(results),
        protocol=protocol_line(benchmarks),
        baseline=benchmarks.get("baseline", ""),
        compute=_both_themes(compute_figure, summary),
        presets=preset_table(importance or {}),
        stability=stability_table(importance or {}),
        spans=_spans_table(importance or {}),
        measured_on=_measured_on(summary),
        skipped=_counted(importance),
        skipped_held_out=_counted(summary.get("evaluation")),
        options=flatten((importance or {}).get("options") or {}),
        charts=[
            (alt, drawn)
            for alt, figure in (
                ("Mean KL of each variant with its 95% interval", variants_figure),
                ("Mean KL of each variant over each behaviour's spans", behaviours_figure),
            )
            if (drawn := _both_themes(figure, summary))
        ],
        ablation=_ablation(ablation) if ablation else None,
        pages={name: f"{folder}/{name}.html" for name, folder in (summary.get("pages") or {}).items()},
        provenance=flatten(summary.get("provenance") or {}),
        recipe=recipe,
    )


def _ablation(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the report shows of an ablation; its own page has the rest."""
    return {
        "method": result["method"],
        "cells": cells_table(result),
        "ranking": ranking_table(result),
        "reading": reading(result),
        "figure": _both_themes(scatter, result),
    }


def render_page(template: str, **values: Any) -> str:
    """A page of this package's templates, with the filters and colours that all of them use."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mixprec.report", ""),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "words": words, "plural": plural, "integer": integer, "percent": percent, "significant": significant,
        "scorer": scorer,
    }  # fmt: skip
    return environment.get_template(template).render(light=LIGHT, dark=DARK, outline=OUTLINE, **values)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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


def heatmap_parts(grids: Grids) -> dict[str, Any]:
    """What a page needs to draw the heatmaps, for wide and narrow screens, and without scripts."""
    return {
        "wide": script_json(interactive_heatmap(grids).to_json()),
        "narrow": script_json(interactive_heatmap(grids, columns=1).to_json()),
        "plotly": Markup(get_plotlyjs()),
        "still": data_uri(render(still_heatmap(grids), "png", dpi=120), "image/png"),
        "alt": summary_line(grids),
    }


def script_json(text: str) -> Markup:
    """JSON that can stand inside a script element: no text in it can end the element."""
    safe = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return Markup(safe)  # HTML entities would not be decoded in a script


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _both_themes(
    figure: Callable[[Mapping[str, Any], Theme], Figure | None], summary: Mapping[str, Any]
) -> dict[str, str]:
    drawn = {"light": figure(summary, LIGHT), "dark": figure(summary, DARK)}
    return {name: data_uri(render(each, "svg"), "image/svg+xml") for name, each in drawn.items() if each}


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
