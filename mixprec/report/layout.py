"""How the linear modules lie in a checkpoint, and how two checkpoints differ, as tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from mixprec.models.decoder import Linear
from mixprec.models.labels import KIND_GROUPS, kinds_among
from mixprec.report.formatting import integer, significant
from mixprec.report.tables import Cell, Column, Table

if TYPE_CHECKING:
    from mixprec.checkpoint.compare import Difference


class LayoutRow(NamedTuple):
    """A module in a checkpoint: what kind of tensors hold it, its format, what the plan says ("" without), bytes."""

    module: Linear
    container: str
    format: str
    planned: str
    bytes: int


def on_disk(rows: Sequence[LayoutRow]) -> float:
    """Bits per weight of all ``rows`` together."""
    return 8 * sum(row.bytes for row in rows) / sum(row.module.weights for row in rows)


def written_table(rows: Sequence[LayoutRow], every: bool = False) -> Table:
    """One line for all modules that lie alike, or for ``every`` module."""
    groups: dict[tuple[Any, ...], list[LayoutRow]] = {}
    for row in rows:
        groups.setdefault((row.container, row.format, row.planned, row.module.label if every else ""), []).append(row)
    which = [Column("module", numeric=False)] if every else [Column("modules"), *_texts("kinds", "layers")]
    planned = any(row.planned for row in rows)
    columns = [*which, *_texts("written as", "format", *["plan"] * planned), Column("bits/weight")]
    lines = []
    for (container, format, plan, label), members in groups.items():
        where = [label] if every else _where([row.module for row in members])
        texts = [*where, container, format, *[plan] * planned, f"{on_disk(members):.4f}"]
        lines.append([Cell(text) for text in texts])
    return Table(columns, lines)


def _texts(*titles: str) -> list[Column]:
    return [Column(title, numeric=False) for title in titles]


def _where(modules: Sequence[Linear]) -> list[str]:
    """How many, their kinds (``attn``, ``mlp`` for all of those, as in selectors), their layers."""
    left, names = {module.kind for module in modules}, []
    for name, members in (KIND_GROUPS | {kind: (kind,) for kind in kinds_among(left)}).items():
        if left.issuperset(members):
            left.difference_update(members)
            names.append(name)
    layers = _ranges(module.layer for module in modules if module.layer)
    return [integer(len(modules)), " ".join([*names, *sorted(left)]), layers]


def _ranges(layers: Iterable[int]) -> str:
    """``1-4, 7``."""
    runs: list[tuple[int, int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], layer)
        else:
            runs.append((layer, layer))
    return ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in runs)


def formats_table(found: Sequence[Difference]) -> Table:
    """One line for each pair of formats: modules, bits, median and highest error of the weights."""
    groups: dict[tuple[str, str], list[Difference]] = {}
    for item in found:
        groups.setdefault((item.format_a, item.format_b), []).append(item)
    columns = [
        Column("modules"), *_texts("A", "B"), Column("bits A"), Column("bits B"), Column("median error"),
        Column("highest"), Column("equal"),
    ]  # fmt: skip
    lines = []
    for (a, b), items in groups.items():
        bits = [_mean(items, "bits_a"), _mean(items, "bits_b")]
        errors = [significant(f([item.error for item in items])) for f in (median, max)]
        equal = integer(sum(item.error == 0 for item in items))
        lines.append([Cell(text) for text in (integer(len(items)), a, b, *bits, *errors, equal)])
    return Table(columns, lines)


def _mean(items: Sequence[Difference], bits: str) -> str:
    weights = sum(item.weights for item in items)
    return f"{sum(getattr(item, bits) * item.weights for item in items) / weights:.4f}"


def worst_table(found: Sequence[Difference], count: int) -> Table:
    """The ``count`` modules whose weights differ most; those with equal weights are left out."""
    columns = [*_texts("module", "A", "B"), Column("bits A"), Column("bits B"), Column("error")]
    worst = [item for item in sorted(found, key=lambda item: -item.error)[:count] if item.error]
    return Table(
        columns,
        [
            [
                *map(Cell, (item.label, item.format_a, item.format_b)),
                *map(Cell, (f"{item.bits_a:.4f}", f"{item.bits_b:.4f}", significant(item.error))),
            ]
            for item in worst
        ],
    )
