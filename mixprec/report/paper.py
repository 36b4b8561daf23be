"""The paper's tables (arXiv 2504.02010) from results on benchmarks: the same columns, with intervals and n."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from mixprec.core.errors import UserError
from mixprec.report.benchmarks import score
from mixprec.report.formatting import ABSENT
from mixprec.report.tables import Cell, Column, Table

Result = Mapping[str, Any]

#: The paper's accuracy columns, in its order, and what it averages.
_ACCURACY = ("aime_2024", "folio", "temporal_sequences")
_TITLES = {"aime_2024": "AIME 2024", "folio": "FOLIO", "temporal_sequences": "Temporal"}


class Layout(NamedTuple):
    """One of the paper's tables: columns that name a row (title -> label), and the function that fills the rest."""

    title: str
    names: Mapping[str, str]
    fill: Callable[[Sequence[Result], Sequence[str]], tuple[list[Column], list[list[Cell]]]]


def table(which: int, results: Sequence[Result]) -> Table:
    """A table of the paper over several results, as ``mixprec.evaluate.bench.result`` gives them with their labels.

    The best score of each model stands out where the model has several rows, as in the paper.
    Raises UserError for a table that is none of LAYOUTS.
    """
    if which not in LAYOUTS:
        raise UserError(f"--table: {which}: there are {', '.join(map(str, LAYOUTS))}")
    layout = LAYOUTS[which]
    if which == 8:
        results = [part for result in results for part in _settings(result)]
    segments = [_label(result, "model") for result in results]
    if which == 9:
        return _components(results)
    columns, cells = layout.fill(results, segments)
    names = _telling(layout.names, results)
    named = [Column(title, "Models" if which in (1, 2, 10, 11) else "", numeric=False) for title in names]
    rows = [
        [Cell(_name(result, key)) for key in names.values()] + filled
        for result, filled in zip(results, cells, strict=True)
    ]
    return Table([*named, *columns], rows)


def _telling(names: Mapping[str, str], results: Sequence[Result]) -> Mapping[str, str]:
    """The columns that name rows; where two rows would have one name, what else tells them apart as well."""
    for title, key in (("Compression", "compression"), ("Variant", "variant")):
        rows = {tuple(_name(result, each) for each in names.values()) for result in results}
        if len(rows) < len(results) and key not in names.values() and any(_label(each, key) for each in results):
            names = {**names, title: key}
    return names


def _label(result: Result, key: str) -> str:
    return str(result.get("labels", {}).get(key) or "")


def _name(result: Result, key: str) -> str:
    """A row's name; what a result doesn't say is the paper's dash."""
    if key == "setting":
        return "RAG" if "musique_rag" in result["benchmarks"] else "Closed-book"
    if key == "rank":
        return _label(result, "rank") or _label(result, "description") or "-"
    if key == "component":
        return _label(result, "component") or _label(result, "variant") or "-"
    return _label(result, key) or "-"


def _bold(values: Sequence[float | None], segments: Sequence[str]) -> list[bool]:
    """Whether each value is the best of its segment; where all are equal, none is."""
    found = []
    for value, segment in zip(values, segments, strict=True):
        rivals = [each for each, other in zip(values, segments, strict=True) if other == segment and each is not None]
        found.append(value is not None and value == max(rivals) > min(rivals))
    return found


def _means(results: Sequence[Result], name: str, metric: str) -> list[float | None]:
    return [(result["benchmarks"].get(name) or {}).get(metric, {}).get("mean") for result in results]


def _accuracies(results: Sequence[Result], segments: Sequence[str]) -> tuple[list[Column], list[list[Cell]]]:
    """AIME 2024, FOLIO, Temporal and their average."""
    columns: list[Column] = []
    cells: list[list[Cell]] = [[] for _ in results]
    for name in _ACCURACY:
        sizes = {entry["accuracy"]["n"] for result in results if (entry := result["benchmarks"].get(name))}
        n = f" (n={', '.join(map(str, sorted(sizes)))})" if sizes else ""
        columns.append(Column(f"{_TITLES[name]}{n}", "Accuracy"))
        strong = _bold(_means(results, name, "accuracy"), segments)
        for row, result, best in zip(cells, results, strong, strict=True):
            row.append(score((result["benchmarks"].get(name) or {}).get("accuracy"), best))
    columns.append(Column("Avg", "Accuracy"))
    averages = [_average(result) for result in results]
    strong = _bold([entry["mean"] if entry else None for entry in averages], segments)
    for row, entry, best in zip(cells, averages, strong, strict=True):
        row.append(score(entry, best))
    return columns, cells


def _average(result: Result) -> Mapping[str, Any] | None:
    """The mean of all three accuracies; None where one is missing, as it would be another mean."""
    complete = all(name in result["benchmarks"] for name in _ACCURACY)
    found: Mapping[str, Any] | None = result.get("average") if complete else None
    return found


def _settings(result: Result) -> list[Result]:
    """A result's settings of MuSiQue, one by one: a model may have answered with passages and without."""
    found = [name for name in ("musique", "musique_rag") if name in result["benchmarks"]]
    return [{**result, "benchmarks": {name: result["benchmarks"][name]}} for name in found] or [result]


def _either(results: Sequence[Result], segments: Sequence[str]) -> tuple[list[Column], list[list[Cell]]]:
    """EM and F1 of MuSiQue, with passages or without, of results that have one of the two."""
    found = [result["benchmarks"] for result in results]
    return _overlap([each.get("musique") or each.get("musique_rag") for each in found], segments)


def _closed_book(results: Sequence[Result], segments: Sequence[str]) -> tuple[list[Column], list[list[Cell]]]:
    """EM and F1 of MuSiQue without passages."""
    return _overlap([result["benchmarks"].get("musique") for result in results], segments)


def _overlap(
    entries: Sequence[Mapping[str, Any] | None], segments: Sequence[str]
) -> tuple[list[Column], list[list[Cell]]]:
    sizes = {entry["em"]["n"] for entry in entries if entry}
    n = f" (n={', '.join(map(str, sorted(sizes)))})" if sizes else ""
    columns = [Column(f"EM{n}", "MuSiQue"), Column(f"F1{n}", "MuSiQue")]
    cells: list[list[Cell]] = [[] for _ in entries]
    for metric in ("em", "f1"):
        strong = _bold([entry[metric]["mean"] if entry else None for entry in entries], segments)
        for row, entry, best in zip(cells, entries, strong, strict=True):
            row.append(score(entry[metric] if entry else None, best))
    return columns, cells


def _all(results: Sequence[Result], segments: Sequence[str]) -> tuple[list[Column], list[list[Cell]]]:
    columns, cells = _accuracies(results, segments)
    more, others = _closed_book(results, segments)
    return columns + more, [first + second for first, second in zip(cells, others, strict=True)]


def _lengths(share: float) -> Callable[[Sequence[Result], Sequence[str]], tuple[list[Column], list[list[Cell]]]]:
    """Scores of the shortest and longest outputs; of each pair the better one stands out."""

    def fill(results: Sequence[Result], _: Sequence[str]) -> tuple[list[Column], list[list[Cell]]]:
        columns: list[Column] = []
        cells: list[list[Cell]] = [[] for _ in results]
        for name, metric, title in (
            ("aime_2024", "accuracy", "AIME 2024"),
            ("folio", "accuracy", "FOLIO"),
            ("musique", "em", "MuSiQue EM"),
            ("musique", "f1", "MuSiQue F1"),
        ):
            found = [_part(result, name, metric, share) for result in results]
            sizes = sorted({entry["n"] for entry in found if entry and entry["n"]})
            group = f"{title} (n={', '.join(map(str, sizes))} each)" if sizes else title
            columns += [Column("Short", group), Column("Long", group), Column("Ratio", group)]
            for row, entry in zip(cells, found, strict=True):
                row += _pair(entry)
        return columns, cells

    return fill


def _part(result: Result, name: str, metric: str, share: float) -> Mapping[str, Any] | None:
    entry = result["benchmarks"].get(name)
    return entry["compute"]["shares"].get(str(share), {}).get(metric) if entry else None


def _pair(entry: Mapping[str, Any] | None) -> list[Cell]:
    if not entry or entry["short"] is None:
        return [Cell(ABSENT)] * 3
    sides = {
        side: score({"mean": entry[side], "ci": entry[f"{side}_ci"]}, entry[side] > entry[other])
        for side, other in (("short", "long"), ("long", "short"))
    }
    return [sides["short"], sides["long"], Cell(f"{entry['ratio']:.1f}")]


def _components(results: Sequence[Result]) -> Table:
    """Table 9: compression and model down, the module that was quantized across, AIME 2024."""
    parts = list(dict.fromkeys(_name(result, "component") for result in results))
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        name = f"{_label(result, 'compression') or '16-bit'} ({_label(result, 'model')})"
        entry = result["benchmarks"].get("aime_2024")
        rows.setdefault(name, {})[_name(result, "component")] = entry["accuracy"] if entry else None
    columns = [Column("Selective Quantization", numeric=False), *(Column(part, "AIME 2024") for part in parts)]
    cells = []
    for name, found in rows.items():
        values = [(found.get(part) or {}).get("mean") for part in parts]
        strong = _bold(values, [name] * len(parts))
        cells.append([Cell(name), *(score(found.get(p), best) for p, best in zip(parts, strong, strict=True))])
    return Table(columns, cells)


_MODEL = {"Model": "model", "#Param": "parameters"}
_METHOD = {"Model": "model", "Compression": "compression"}
LAYOUTS: dict[int, Layout] = {
    1: Layout("Performance of compressed variants", {**_MODEL, "Compression": "compression"}, _all),
    2: Layout("Performance under various sparsity levels", {**_MODEL, "Sparsity": "sparsity"}, _all),
    3: Layout(
        "Accuracy with one component quantized", {"Quantized Component": "component", "Rank": "rank"}, _accuracies
    ),
    4: Layout("Performance with modules kept in 16 bits", {**_METHOD, "Full-Precision Anywhere?": "kept"}, _all),
    7: Layout("Performance of a model and its variants", _METHOD, _all),
    8: Layout("RAG and closed-book settings on MuSiQue", {"Setting": "setting", "LRM": "model"}, _either),
    9: Layout("Selective quantization on AIME 2024", {}, _all),
    10: Layout("Test-time compute, shortest and longest 30%", _METHOD, _lengths(0.3)),
    11: Layout("Test-time compute, shortest and longest 20%", _METHOD, _lengths(0.2)),
}
