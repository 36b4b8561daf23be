"""Results on benchmarks as tables: scores with intervals and n, what went wrong, and differences to a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixprec.report.formatting import ABSENT, integer, percent
from mixprec.report.tables import Cell, Column, Table

METRICS = {"accuracy": "accuracy", "em": "EM", "f1": "F1"}
#: Of the outputs, those that count as the shortest and the longest.
_SHARE = "0.3"
Results = Mapping[str, Mapping[str, Any]]


def score(entry: Mapping[str, Any] | None, strong: bool = False) -> Cell:
    """A mean in percent with its interval, as ``71.9 [66.0, 77.3]``."""
    if not entry or entry.get("mean") is None:
        return Cell(ABSENT)
    bounds = entry.get("ci")
    interval = f"[{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]" if bounds and bounds[0] < bounds[1] else ""
    return Cell(f"{100 * entry['mean']:.1f}", interval, strong)


#: Columns that fit a terminal.
_BRIEF = ("variant", "benchmark", "score", "difference", "n", "no answer", "cut", "collapsed")


def overview(variants: Results, differences: Mapping[str, Any] | None = None, brief: bool = False) -> Table:
    """One row per variant and benchmark: scores, differences to the baseline, and what went wrong.

    ``variants``: name -> benchmark -> entry, as a summary has it. Nothing is hidden: outputs without an answer, cut
    ones, collapsed ones and open thinking are counted beside the score, each out of ``outputs``. n: questions times
    passes. ``brief`` is for a terminal.
    """
    columns = [Column("variant", numeric=False), Column("benchmark", numeric=False)]
    columns += [Column("score"), Column("± se"), Column("difference"), Column("n"), Column("outputs")]
    columns += [Column(title, "of the outputs") for title in ("no answer", "cut", "collapsed", "thinking open")]
    columns += [Column("gibberish"), Column("tokens, mean")]
    rows = []
    for variant, found in variants.items():
        for name, entry in found.items():
            if name == "average":
                continue
            for metric, title in METRICS.items():
                if metric in entry:
                    moved = ((differences or {}).get(variant) or {}).get(name, {}).get(metric)
                    rows.append(_row(variant, entry, metric, title, moved))
    if not brief:
        return Table(columns, rows)
    unused = {"variant"} if len(variants) == 1 else set()
    unused |= set() if differences else {"difference"}
    shown = [i for i, column in enumerate(columns) if column.title in _BRIEF and column.title not in unused]
    bare = [[cell._replace(note="") if i == 1 else cell for i, cell in enumerate(row)] for row in rows]
    return Table([columns[i]._replace(group="") for i in shown], [[row[i] for i in shown] for row in bare])


def _row(
    variant: str, entry: Mapping[str, Any], metric: str, title: str, moved: Mapping[str, Any] | None
) -> list[Cell]:
    found, health = entry[metric], entry["diagnosis"]
    tokens = health["tokens"]
    name = entry["title"] if metric == "accuracy" else f"{entry['title']} {title}"
    error = ABSENT if found["se"] is None else f"{100 * found['se']:.1f}"
    return [
        Cell(variant),
        Cell(name, "" if entry["paper_questions"] else "not the paper's questions"),
        score(found),
        Cell(error),
        difference(moved),
        Cell(f"{found['n']} × {found['seeds']}"),
        Cell(integer(health["n"])),
        Cell(integer(entry["outcomes"]["none"])),
        Cell(integer(health["cut"])),
        Cell(integer(health["collapsed"])),
        Cell(integer(health["thinking"]["open"])),
        Cell(percent(health["gibberish"])),
        Cell(ABSENT if tokens is None else f"{tokens['mean']:,.0f}"),
    ]


def difference(moved: Mapping[str, Any] | None) -> Cell:
    """A paired difference in percentage points; it stands out where its interval excludes 0."""
    if not moved or moved.get("difference") is None:
        return Cell(ABSENT)
    bounds = moved.get("ci")
    interval = f"[{100 * bounds[0]:+.1f}, {100 * bounds[1]:+.1f}]" if bounds else ""
    apart = bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
    return Cell(f"{100 * moved['difference']:+.1f}", interval, apart)


def at_k_table(variants: Results) -> Table:
    """pass@k and maj@k of every variant and benchmark; empty with one sample of each question."""
    names = list(
        dict.fromkeys(
            key for found in variants.values() for name, e in found.items() if name != "average" for key in e["at_k"]
        )
    )
    if len(names) <= 2:
        return Table([], [])
    columns = [Column("variant", numeric=False), Column("benchmark", numeric=False)]
    rows = []
    for variant, found in variants.items():
        for name, entry in found.items():
            if name != "average":
                rows.append([Cell(variant), Cell(entry["title"]), *(score(entry["at_k"].get(key)) for key in names)])
    return Table([*columns, *(Column(name) for name in names)], rows)


def results_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Variant -> benchmark -> entry, of the variants that were run on benchmarks."""
    variants = (summary.get("variants") or {}).items()
    return {name: variant["benchmarks"] for name, variant in variants if variant.get("benchmarks")}


def short_and_long(summary: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Title -> variant -> scores of its shortest and longest outputs; benchmarks with too few questions left out."""
    panels: dict[str, dict[str, Mapping[str, Any]]] = {}
    for variant, found in results_of(summary).items():
        for name, entry in found.items():
            if name == "average":
                continue
            metric, values = next(iter(entry["compute"]["shares"][_SHARE].items()))
            if values["n"]:
                title = entry["title"] + ("" if metric == "accuracy" else f" {METRICS[metric]}")
                panels.setdefault(title, {})[variant] = values
    return panels


def protocol_line(benchmarks: Mapping[str, Any]) -> str:
    """How the benchmarks were run, in a sentence; empty where none were."""
    protocol = benchmarks.get("protocol")
    if not protocol:
        return ""
    seeds = ", ".join(map(str, protocol["seeds"]))
    given = protocol.get("template") or {}
    template = f" ({', '.join(f'{name} {value}' for name, value in given.items())})" if given else ""
    budget = protocol.get("thinking_budget")
    thinking = f", at most {budget:,} of them thinking" if budget else ""
    few = f", the first {protocol['limit']} questions of each benchmark only" if protocol["limit"] else ""
    return (
        f"{'The paper’s prompts' if protocol['prompts'] == 'paper' else 'Prompts in the chat template'}{template}, "
        f"temperature {protocol['temperature']:g}, top-p {protocol['top_p']:g}, at most {protocol['max_new_tokens']:,} "
        f"new tokens{thinking}, seeds {seeds}{few}."
    )
