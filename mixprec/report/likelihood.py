"""Likelihoods of answers as tables: what the paper's protocol is not, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixprec.report.benchmarks import difference, score
from mixprec.report.formatting import ABSENT, percent, significant
from mixprec.report.formatting import interval as bounds
from mixprec.report.tables import Cell, Column, Table

NOTE = (
    "Likelihood of answers behind a fixed text, nothing generated: not the paper's protocol. Gold NLL: nats of the "
    "right answer, among the options or per token."
)


def likelihood_table(variants: Mapping[str, Any], differences: Mapping[str, Any] | None = None) -> Table:
    """One row per variant and benchmark.

    ``variants``: name -> benchmark -> entry, as a summary has it. ``differences``: variant -> benchmark -> measure ->
    paired difference to the baseline. Columns in which nothing stands are left out.
    """
    columns = [Column("variant", numeric=False), Column("benchmark", numeric=False)]
    columns += [Column("accuracy"), Column("difference"), Column("McNemar p"), Column("chance"), Column("options hold")]
    columns += [Column("gold NLL"), Column("its difference"), Column("n")]
    rows = [
        _row(variant, entry, ((differences or {}).get(variant) or {}).get(name) or {})
        for variant, found in variants.items()
        for name, entry in found.items()
    ]
    empty = {at for at in range(len(columns)) if all(row[at].text == ABSENT for row in rows)}
    empty |= {0} if len(variants) == 1 else set()
    shown = [at for at in range(len(columns)) if at not in empty]
    return Table([columns[at] for at in shown], [[row[at] for at in shown] for row in rows])


def likelihoods_of(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Variant -> benchmark -> entry, of the variants whose answers were measured."""
    variants = (summary.get("variants") or {}).items()
    return {name: variant["likelihood"] for name, variant in variants if variant.get("likelihood")}


def guesses(variants: Mapping[str, Any]) -> list[str]:
    """A sentence for each benchmark on which scores are within what guessing reaches."""
    by_title: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for variant, found in variants.items():
        for entry in found.values():
            if entry.get("within_chance"):
                by_title.setdefault(entry["title"], []).append((variant, entry))
    return [
        f"{title}: the accuracy of {', '.join(name for name, _ in within)} is within chance "
        f"({percent(within[0][1]['chance'])} by guessing, {percent(within[0][1]['majority'])} by the most frequent "
        "answer); compare gold NLL and KL in its place"
        for title, within in by_title.items()
    ]


def _row(variant: str, entry: Mapping[str, Any], moved: Mapping[str, Any]) -> list[Cell]:
    closed, nll = "accuracy" in entry, entry["gold_nll"]
    accuracy = moved.get("accuracy") or {}
    return [
        Cell(variant),
        Cell(entry["title"]),
        score(entry.get("accuracy")),
        difference(accuracy),
        Cell(significant(accuracy["p"], 2) if "p" in accuracy else ABSENT),
        Cell(percent(max(entry["chance"], entry["majority"])), "", entry["within_chance"]) if closed else Cell(ABSENT),
        Cell(percent(entry["share"]["mean"]) if closed else ABSENT),
        Cell(significant(nll["mean"]), bounds(nll["ci"])),
        _nats(moved.get("gold_nll")),
        Cell(f"{nll['n']:,}"),
    ]


def _nats(moved: Mapping[str, Any] | None) -> Cell:
    """A paired difference; it stands out where its interval excludes 0."""
    if not moved or moved.get("difference") is None:
        return Cell(ABSENT)
    around = moved.get("ci")
    apart = around is not None and (around[0] > 0 or around[1] < 0)
    return Cell(f"{moved['difference']:+.3g}", bounds(around), apart)
