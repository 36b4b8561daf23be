"""Tables as plain cells, formatted once for the terminal, Markdown and HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mixprec.core.escaping import markdown_cell
from mixprec.report.compare import compressed
from mixprec.report.formatting import (
    ABSENT,
    bits,
    integer,
    interval,
    percent,
    plural,
    significant,
    size,
    words,
)


class Cell(NamedTuple):
    """Text, a smaller note to it (an interval, a share), and whether it stands out.

    ``value``: what it is sorted by where its text doesn't say, as with sizes in different units.
    """

    text: str
    note: str = ""
    strong: bool = False
    value: float | None = None


class Column(NamedTuple):
    """A heading, and what several neighbours share, such as the text they were measured on."""

    title: str
    group: str = ""
    numeric: bool = True


class Table(NamedTuple):
    """Columns and rows of cells, as many in each row as there are columns. No rows: nothing to show."""

    columns: list[Column]
    rows: list[list[Cell]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Runs of columns with the same group: (group, how many)."""
        runs: list[tuple[str, int]] = []
        for column in self.columns:
            if runs and runs[-1][0] == column.group:
                runs[-1] = (column.group, runs[-1][1] + 1)
            else:
                runs.append((column.group, 1))
        return runs


class _Metric(NamedTuple):
    key: str
    title: str
    show: Callable[[Any], str]
    better: Callable[..., Any]
    brief: bool


_METRICS = (
    _Metric("perplexity", "perplexity", lambda value: significant(value, 4), min, True),
    _Metric("kl_mean", "KL mean", significant, min, True),
    _Metric("kl_median", "KL median", significant, min, False),
    _Metric("kl_p99", "KL 99th pct", significant, min, False),
    _Metric("top1_agreement", "top-1 agreement", percent, max, True),
)


def variant_table(summary: Mapping[str, Any], brief: bool = False) -> Table:
    """One row per variant: size, then metrics on held-out traces and on text; ``brief`` is for a terminal.

    Columns without any value are left out. The best value among the variants that compress the whole model
    stands out: neither the 16-bit baseline nor probes of single modules compete.
    """
    variants: dict[str, Mapping[str, Any]] = summary.get("variants") or {}
    if not variants:
        return Table([], [])
    columns = [Column("variant", numeric=False), Column("effective bits"), Column("size")]
    if not brief:
        columns[1:2] = [Column("code bits"), Column("effective bits")]
        columns.append(Column("modules quantized"))
    rows = [_head(name, variant, brief) for name, variant in variants.items()]
    for part, group, full in _sets(summary)[: 1 if brief else None]:
        for metric in _METRICS:
            values = {name: _part(variant, part).get(metric.key) for name, variant in variants.items()}
            wanted = metric.brief or (full and not brief)
            if not wanted or all(value is None for value in values.values()):
                continue
            columns.append(Column(metric.title, "" if brief else group))
            best = _best([values[name] for name in compressed(summary)], metric.better)
            for row, (name, variant) in zip(rows, variants.items(), strict=True):
                note = interval(_part(variant, part).get(f"{metric.key}_ci"))
                strong = best is not None and values[name] == best and name in compressed(summary)
                row.append(Cell(metric.show(values[name]), note, strong))
    return Table(columns, rows)


def _sets(summary: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """(where a variant has the metrics, what they were measured on, whether to show all of them).

    The main ones lie in the variant itself: on traces or, in a run without held-out traces, on the text.
    """
    traces = (summary.get("evaluation") or {}).get("traces")
    if traces and not traces.get("tokens"):
        return [("", "text", True)]
    return [("", "held-out traces", True), ("text", "text", False)]


def _head(name: str, variant: Mapping[str, Any], brief: bool) -> list[Cell]:
    on_disk = variant.get("bytes_on_disk")
    note = "" if size(on_disk) in (ABSENT, size(variant.get("bytes"))) else f"disk {size(on_disk)}"
    sizes = [
        Cell(bits(variant.get("effective_bits"))),
        Cell(size(variant.get("bytes")), "" if brief else note, value=variant.get("bytes")),
    ]
    if brief:
        return [Cell(name), *sizes]
    return [
        Cell(name, variant.get("description") or ""),
        Cell(bits(variant.get("code_bits"))),
        *sizes,
        Cell(integer(variant.get("modules_quantized"))),
    ]


def _part(variant: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    return (variant.get(part) or {}) if part else variant


def _best(values: list[float | None], better: Callable[..., Any]) -> float | None:
    """The best of at least two values."""
    known = [value for value in values if value is not None]
    return better(known) if len(known) > 1 else None


def behaviour_table(summary: Mapping[str, Any]) -> Table:
    """Mean KL to the original over each behaviour's spans: variants by behaviours, with 95% intervals."""
    variants: dict[str, Mapping[str, Any]] = summary.get("variants") or {}
    measured = {
        name: {
            behaviour: entry
            for behaviour, entry in (variant.get("behaviours") or {}).items()
            if entry and entry.get("kl_mean") is not None
        }
        for name, variant in variants.items()
    }
    tokens: dict[str, int | None] = {}
    for entries in measured.values():
        for behaviour, entry in entries.items():
            tokens.setdefault(behaviour, entry.get("tokens"))
    if not tokens:
        return Table([], [])
    columns = [Column("variant", numeric=False)]
    columns += [
        Column("KL mean" if count is None else plural(count, "token"), words(behaviour))
        for behaviour, count in tokens.items()
    ]
    whole = [name for name in compressed(summary) if name in measured]
    rows = []
    for name, entries in measured.items():
        row = [Cell(name)]
        for behaviour in tokens:
            entry = entries.get(behaviour, {})
            best = _best([measured[other].get(behaviour, {}).get("kl_mean") for other in whole], min)
            value = entry.get("kl_mean")
            strong = value is not None and value == best and name in whole
            row.append(Cell(significant(value), interval(entry.get("kl_mean_ci")), strong))
        rows.append(row)
    return Table(columns, rows)


def top_modules_table(summary: Mapping[str, Any]) -> Table:
    """The most important modules, one column per behaviour, best first, with their share of all importance and the
    interval of their rank.

    A module that several behaviours share stands out.
    """
    lists = {name: entry.get("top_modules") or [] for name, entry in (summary.get("behaviours") or {}).items()}
    longest = max((len(modules) for modules in lists.values()), default=0)
    if not longest:
        return Table([], [])
    seen = Counter(module["label"] for modules in lists.values() for module in modules)
    rows = []
    for index in range(longest):
        row = [Cell(str(index + 1))]
        for modules in lists.values():
            if index >= len(modules):
                row.append(Cell(ABSENT))
                continue
            module = modules[index]
            share, ranks = module.get("relative"), module.get("rank_interval")
            note = "" if share is None else percent(share, 2)
            # A rank that no resample changes needs no words.
            note += f", {ranks[0]}–{ranks[1]}" if ranks and ranks[0] != ranks[1] else ""
            row.append(Cell(module["label"], note, seen[module["label"]] > 1))
        rows.append(row)
    return Table([Column("rank"), *(Column(words(name), numeric=False) for name in lists)], rows)


def to_markdown(table: Table) -> str:
    """A table as GitHub Markdown, outstanding values in bold, notes after their value; empty for no rows."""
    if not table.rows:
        return ""
    titles = [f"{column.group}: {column.title}" if column.group else column.title for column in table.columns]
    lines = [
        [markdown_cell(title) for title in titles],
        ["--:" if column.numeric else ":--" for column in table.columns],
    ]
    for row in table.rows:
        lines.append([_markdown_cell(cell) for cell in row])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_cell(cell: Cell) -> str:
    text, note = markdown_cell(cell.text), markdown_cell(cell.note)
    return (f"**{text}**" if cell.strong else text) + (f" {note}" if note else "")
