"""A run's charts for its page: damage of the variants, size against damage, predicted against measured, and lengths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mixprec.report.benchmarks import short_and_long
from mixprec.report.charts import groups_of, left_out
from mixprec.report.compare import compressed, is_baseline
from mixprec.report.formatting import bits, interval, percent, plural, scorer, significant, size, words
from mixprec.report.plots import Axis, Bar, Point, Points, Row, Rows, axis, labelled
from mixprec.report.validity import panels_of

_LABEL = "mean KL to the original, nats per token (log scale)"
#: Pixels of the Pareto plot that names are placed for.
_PLOT = (760.0, 300.0)
#: Kinds of points in the Pareto plot.
KINDS = {
    "ours": "by mixprec",
    "control": "controls: same size, chosen without the scores",
    "peer": "by other packages",
}


def damage_rows(summary: Mapping[str, Any]) -> list[Rows]:
    """Mean KL of each variant with its interval; those that compress the whole model apart from probes, which lie
    orders of magnitude below. No group: nothing was measured."""
    found = [
        _rows(summary, title, entries, _around(entries.values()))._replace(label=_LABEL)
        for title, entries in groups_of(summary).items()
    ]
    if found:
        missing = left_out(summary, {row.name for group in found for row in group.rows})
        found[-1] = found[-1]._replace(note=missing)
    return found


def behaviour_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, list[Rows]]]:
    """(behaviour, how many tokens, its damage), of those that were measured; groups of one title share an axis."""
    variants = summary.get("variants") or {}
    names = dict.fromkeys(name for variant in variants.values() for name in variant.get("behaviours") or {})
    known = {name: groups for name in names if (groups := groups_of(summary, name))}
    every: dict[str, list[Mapping[str, Any]]] = {}
    for groups in known.values():
        for title, entries in groups.items():
            every.setdefault(title, []).extend(entries.values())
    scales = {title: _around(entries) for title, entries in every.items()}
    found = []
    for name, groups in known.items():
        measured = (entry.get("tokens") for entries in groups.values() for entry in entries.values())
        tokens = next(filter(None, measured), 0)
        drawn = [_rows(summary, title, entries, scales[title]) for title, entries in groups.items()]
        found.append((words(name), plural(tokens, "token") if tokens else "", drawn))
    return found


def _rows(summary: Mapping[str, Any], title: str, entries: Mapping[str, Mapping[str, Any]], scale: Axis) -> Rows:
    rows = []
    for name, entry in entries.items():
        variant = summary["variants"][name]
        note = f"{bits(variant.get('effective_bits'))} bits" if entry is variant else ""
        rows.append(Row(name, [_bar(scale, name, entry, variant)], note))
    return Rows(title, rows, scale.ticks)


def _around(entries: Iterable[Mapping[str, Any]]) -> Axis:
    """An axis around points and intervals. An interval may reach 0, which a log axis does not: it ends at its left."""
    known = list(entries)
    points = [entry["kl_mean"] for entry in known]
    bounds = [bound for entry in known for bound in entry.get("kl_mean_ci") or ()]
    return axis([*points, *(bound for bound in bounds if bound >= min(points) / 10)], log=True)


def _bar(scale: Axis, name: str, entry: Mapping[str, Any], variant: Mapping[str, Any]) -> Bar:
    low, high = entry.get("kl_mean_ci") or (None, None)
    lines = [name, f"KL {significant(entry['kl_mean'])} {interval(entry.get('kl_mean_ci'))}".rstrip()]
    lines += [f"{bits(variant.get('effective_bits'))} effective bits, {size(variant.get('bytes'))}"]
    return Bar(
        scale.at(entry["kl_mean"]),
        None if low is None else scale.at(low),
        None if high is None else scale.at(high),
        "\n".join(lines),
    )


def pareto_points(variants: Mapping[str, Mapping[str, Any]], runs: Mapping[str, str] | None = None) -> Points | None:
    """Effective bits against mean KL of variants that compress the whole model; None with fewer than two.

    The line joins those that no other beats in both. ``runs``: variant -> run, of a page of several.
    """
    shown = {name: entry for name, entry in variants.items() if (entry.get("kl_mean") or 0) > 0}
    if len(shown) < 2:
        return None
    across = axis([entry["effective_bits"] for entry in shown.values()])
    bounds = [bound for entry in shown.values() for bound in (entry["kl_mean"], *(entry.get("kl_mean_ci") or ()))]
    least = min(entry["kl_mean"] for entry in shown.values())
    down = axis([bound for bound in bounds if bound >= least / 10], log=True)
    best = front(shown)
    points = [_pareto_point(name, shown[name], across, down) for name in [*best, *(n for n in shown if n not in best)]]
    ends = [(across.at(shown[name]["effective_bits"]), 100 - down.at(shown[name]["kl_mean"])) for name in best]
    kinds = [(kind, title) for kind, title in KINDS.items() if any(point.kind == kind for point in points)]
    alt = "Size against damage. No other variant is smaller and better than " + ", ".join(best) + "."
    return Points(
        "", labelled(points, *_PLOT), across.ticks, [tick._replace(at=100 - tick.at) for tick in down.ticks],
        "effective bits per weight", "mean KL, nats per token (log scale)", alt,
        [(*one, *other) for one, other in itertools.pairwise(ends)], kinds,
    )  # fmt: skip


def front(variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Variants that no other is both smaller and better than, from the smallest on."""
    best: list[str] = []
    for name in sorted(variants, key=lambda name: (variants[name]["effective_bits"], variants[name]["kl_mean"])):
        if not best or variants[name]["kl_mean"] < variants[best[-1]]["kl_mean"]:
            best.append(name)
    return best


def role(variant: Mapping[str, Any]) -> str:
    """What a variant is in the plot: ``ours``, a ``control``, or of a ``peer``."""
    if (variant.get("engine") or "mixprec") != "mixprec":
        return "peer"
    return "control" if variant.get("control") else "ours"


def _pareto_point(name: str, variant: Mapping[str, Any], across: Axis, down: Axis) -> Point:
    bar = _bar(down, name, variant, variant)
    kind = role(variant)
    by = f"\nby {variant['engine']}" if kind == "peer" else "\na control" if kind == "control" else ""
    low, high = (None if end is None else 100 - end for end in (bar.low, bar.high))
    return Point(across.at(variant["effective_bits"]), 100 - bar.at, kind, bar.tip + by, low, high, name)


def whole(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Variants that belong into a plot of size against damage: neither the original nor probes of a few modules."""
    return {name: entry for name, entry in compressed(summary).items() if not is_baseline(entry)}


def scatter_points(ablation: Mapping[str, Any]) -> list[Points]:
    """Predicted against measured KL on log axes, a plot for each scorer, a point for each module and format."""
    return [_scatter(scorer(name.removesuffix(", all")), found) for name, found in panels_of(ablation).items()]


def _scatter(title: str, found: Sequence[tuple[str, float, float]]) -> Points:
    across, down = axis([each[1] for each in found], log=True), axis([each[2] for each in found], log=True)
    points = [
        Point(
            across.at(predicted),
            100 - down.at(measured),
            "ours",
            f"{cell}\npredicted {significant(predicted)}\nmeasured {significant(measured)}",
        )
        for cell, predicted, measured in found
    ]
    alt = f"{title}: predicted against measured damage, {plural(len(found), 'point')}."
    upwards = [tick._replace(at=100 - tick.at) for tick in down.ticks]
    return Points(title, points, across.ticks, upwards, "predicted damage", "measured KL", alt)


def compute_rows(summary: Mapping[str, Any]) -> list[Rows]:
    """Scores of the shortest and longest outputs of every variant, a group for each benchmark."""
    scale = Axis(0, 100)
    return [
        Rows(title, [_lengths(name, each, scale) for name, each in entries.items()], scale.ticks, "score, percent")
        for title, entries in short_and_long(summary).items()
    ]


def _lengths(name: str, entry: Mapping[str, Any], scale: Axis) -> Row:
    bars = []
    for side, which in (("short", "shortest"), ("long", "longest")):
        low, high = entry[f"{side}_ci"]
        tip = f"{name}\nthe {which} 30%: {percent(entry[side])} [{percent(low)}, {percent(high)}]"
        bars.append(Bar(scale.at(100 * entry[side]), scale.at(100 * low), scale.at(100 * high), tip, side == "long"))
    return Row(name, bars, f"{entry['ratio']:.1f}×" if math.isfinite(entry["ratio"]) else "")
