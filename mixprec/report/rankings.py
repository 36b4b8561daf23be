"""Tables of rankings: ranks as in the paper's Table 3, who lost importance in a shift, and how alike rankings are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mixprec.importance import artifact
from mixprec.importance.shift import Kind, Place, ordinal
from mixprec.numerics import chance
from mixprec.report.formatting import ABSENT, integer, interval, percent, significant, words
from mixprec.report.tables import Cell, Column, Table


def places_table(places: Sequence[Place], scales: Mapping[str, float] | None = None) -> Table:
    """One row per module: its share of the importance summed over behaviours, and its three ranks in words.

    ``scales``: label -> AWQ's mean unnormalised scale, shown with its rank among the modules of the same kind; modules
    with scale 1 are not scaled and don't rank (arXiv 2504.02010, appendix M).
    """
    columns = [Column("module", numeric=False), Column("importance, all behaviours"), Column("share")]
    columns += [
        Column("rank", numeric=False),
        Column("in its layer", numeric=False),
        Column("in its kind", numeric=False),
    ]
    rows = [
        [Cell(p.label), Cell(significant(p.total)), Cell(percent(p.share, 2)), *(Cell(text) for text in p.words)]
        for p in places
    ]
    if scales:
        columns += [Column("AWQ scale"), Column("in its kind", numeric=False)]
        for place, row in zip(places, rows, strict=True):
            row += _scale_cells(place.label, scales)
    return Table(columns, rows)


def _scale_cells(label: str, scales: Mapping[str, float]) -> list[Cell]:
    own = scales.get(label, 1.0)
    if own == 1:
        return [Cell("not scaled"), Cell(ABSENT)]
    kind = label.rpartition("_")[2]
    others = [scale for name, scale in scales.items() if name.rpartition("_")[2] == kind and scale != 1]
    return [Cell(significant(own)), Cell(ordinal(1 + sum(scale > own for scale in others), len(others)))]


def movers_table(shift: Mapping[str, Any], kind: Kind) -> Table:
    """The ten modules of each behaviour that lost most importance, or gained most for ``increases``.

    Notes give the relative importance before and after. A module that several behaviours share stands out.
    """
    lists = {}
    for behaviour, entry in shift["behaviours"].items():
        change = np.array(entry["net"]) * (-1 if kind == "increases" else 1)
        order = np.argsort(artifact.ranks(change))[: artifact.TOP]
        before, after = entry["relative"]
        lists[behaviour] = [
            (shift["modules"][i]["label"], f"{100 * before[i]:.2f}→{percent(after[i], 2)}")
            for i in order
            if change[i] > 0
        ]
    seen = Counter(label for found in lists.values() for label, _ in found)
    rows = []
    for index in range(max((len(found) for found in lists.values()), default=0)):
        row = [Cell(str(index + 1))]
        for found in lists.values():
            label, note = found[index] if index < len(found) else (ABSENT, "")
            row.append(Cell(label, note, seen[label] > 1))
        rows.append(row)
    return Table([Column(""), *(Column(words(name), numeric=False) for name in lists)], rows)


def agreement_table(shift: Mapping[str, Any]) -> Table:
    """Per behaviour how much importance moved, and how alike both models rank the modules."""
    columns = [Column("behaviour", numeric=False), Column("moved"), Column("Spearman"), Column("top-ten overlap")]
    rows = [
        [Cell(words(behaviour)), Cell(percent(entry["moved"])), *_agreement(entry, len(shift["modules"]))]
        for behaviour, entry in shift["behaviours"].items()
    ]
    return Table(columns, rows)


def shifts_table(summary: Mapping[str, Any]) -> Table:
    """Of each model that a run compares with its original: how much importance moved, per behaviour, and Spearman's
    rank correlation beside it."""
    shifts = summary.get("shifts") or {}
    behaviours = dict.fromkeys(name for entry in shifts.values() for name in entry.get("behaviours") or {})
    rows = []
    for model, entry in shifts.items():
        cells = [Cell(model, entry.get("unknown") or "")]
        for behaviour in behaviours:
            found = (entry.get("behaviours") or {}).get(behaviour)
            note = f"ρ {significant(found['spearman'], 2)}" if found else ""
            cells.append(Cell(percent(found["moved"]) if found else ABSENT, note))
        rows.append(cells)
    return Table([Column("model", numeric=False), *(Column(words(name)) for name in behaviours)], rows)


def annotations_table(summary: Mapping[str, Any]) -> Table:
    """How alike two annotations of the same traces let the modules rank, by behaviour, with intervals."""
    columns = [Column("behaviour", numeric=False), Column("Spearman"), Column("of the top ten in both")]
    found = (summary.get("agreement") or {}).get("behaviours") or {}
    rows = [
        [
            Cell(words(behaviour)),
            Cell(f"{entry['spearman']:.2f}", interval(entry.get("spearman_ci"))),
            Cell(f"{entry['top10_overlap']:.0f}", interval(entry.get("top10_overlap_ci"))),
        ]
        for behaviour, entry in found.items()
    ]
    return Table(columns, rows)


def between_table(shift: Mapping[str, Any]) -> Table:
    """How alike two behaviours rank the modules, within the first model and within the second."""
    pairs: dict[tuple[str, str], list[list[Cell]]] = {}
    for side, model in enumerate(("first", "second")):
        for entry in shift["between"][model]:
            one, other = entry["behaviours"]
            cells = pairs.setdefault((one, other), [[Cell(ABSENT)] * 2, [Cell(ABSENT)] * 2])
            cells[side] = _agreement(entry, len(shift["modules"]))
    columns = [Column("behaviours", numeric=False)]
    for model in ("first", "second"):
        columns += [Column("Spearman", model), Column("top-ten overlap", model)]
    return Table(
        columns,
        [[Cell(f"{words(one)}, {words(other).lower()}"), *a, *b] for (one, other), (a, b) in pairs.items()],
    )


def preset_table(importance: Mapping[str, Any]) -> Table:
    """How far another preset ranks the modules alike."""
    rows = [
        [Cell(words(behaviour)), *_agreement(entry, len(importance["modules"]))]
        for behaviour, entry in (importance.get("comparison") or {}).items()
    ]
    return Table([Column("behaviour", numeric=False), Column("Spearman"), Column("top-ten overlap")], rows)


def stability_table(importance: Mapping[str, Any]) -> Table:
    """How far the ranking stays the same when the traces are resampled."""
    rows = []
    for behaviour, entry in (importance.get("behaviours") or {}).items():
        found = entry.get("stability")
        if found:
            worst = f"{significant(found['spearman_p5'], 2)} or less in 5%"
            overlap = _overlap(f"{found['top10_overlap_mean']:.1f}", len(importance["modules"]))
            rows.append([Cell(words(behaviour)), Cell(significant(found["spearman_mean"], 2), worst), overlap])
    return Table([Column("behaviour", numeric=False), Column("Spearman"), Column("top-ten overlap")], rows)


def _agreement(entry: Mapping[str, Any], modules: int) -> list[Cell]:
    overlap = entry.get(f"top{artifact.TOP}_overlap")
    return [
        Cell(significant(entry.get("spearman"), 2)),
        Cell(ABSENT) if overlap is None else _overlap(integer(overlap), modules),
    ]


def _overlap(shown: str, modules: int) -> Cell:
    """An overlap of top lists beside that of two random lists of as many modules."""
    by_chance = chance.of_overlap(modules, artifact.TOP, 0)
    return Cell(f"{shown} of {by_chance.size}", f"chance {significant(by_chance.expected, 2)}")
