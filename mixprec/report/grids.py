"""Values of modules as layer-by-kind grids: what the heatmaps of pictures and of pages are drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import MaxNLocator

from mixprec.importance import artifact
from mixprec.importance.shift import Kind
from mixprec.report.formatting import integer, interval, percent, plural, significant, words

#: Above this many layers the four panels lie one under another, below in two columns.
WIDE_LAYERS = 40
#: Share of a scale's length between two of its labels, at least.
_TICK_ROOM = 0.13
#: Outline of the top module: stands out on every colour of both maps.
OUTLINE = "#e5383b"


class Measure(NamedTuple):
    """What the values are, as the scale is titled; signed ones lie on both sides of 0."""

    name: str
    signed: bool = False

    @property
    def scale(self) -> str:
        """What the scale is called."""
        return f"{self.name} (square-root scale)"

    @property
    def colours(self) -> str:
        """Name of the colour map: perceptually uniform, or diverging."""
        return "PuOr" if self.signed else "viridis"


class Top(NamedTuple):
    """The module of a behaviour with the highest value: its cell (row, 1-based layer) and label."""

    row: int
    layer: int
    label: str


class Panel(NamedTuple):
    """One behaviour. Arrays have shape (kinds, layers); NaN, rank 0 and no text where there is no such module.

    hover: what there is to say of a cell, in lines.
    """

    behaviour: str
    title: str
    counts: str
    values: np.ndarray
    ranks: np.ndarray
    hover: np.ndarray
    top: Top | None


class Grids(NamedTuple):
    """All behaviours of one artifact on one scale up to ``maximum``, from 0 or, for signed values, its negative."""

    measure: Measure
    kinds: list[str]
    layers: int
    modules: int
    labels: np.ndarray
    panels: list[Panel]
    maximum: float

    @property
    def columns(self) -> int:
        """Panels side by side that still leave cells wide enough to see."""
        return 1 if self.layers > WIDE_LAYERS or len(self.panels) < 2 else 2

    @property
    def minimum(self) -> float:
        """The scale's lower end."""
        return -self.maximum if self.measure.signed else 0.0


class Values(NamedTuple):
    """One behaviour's values, one for each module; None: it was never seen. ``lines`` are more to say of each."""

    behaviour: str
    counts: str
    values: np.ndarray | None
    lines: Sequence[Sequence[str]]


def importance_grids(importance: Mapping[str, Any]) -> Grids:
    """Arrange the scores of a loaded importance artifact.

    Raises UserError where a behaviour's scores don't match the modules.
    """
    modules = importance["modules"]
    columns = []
    for behaviour, entry in importance["behaviours"].items():
        scores = artifact.check_scores(entry, behaviour, len(modules), "importance")
        columns.append(
            Values(behaviour, _counts(entry), scores if scores.any() else None, _importance_lines(scores, entry))
        )
    return arrange(Measure("importance"), modules, columns)


def _importance_lines(scores: np.ndarray, entry: Mapping[str, Any]) -> list[list[str]]:
    """Score and rank with their intervals, and the share of all importance."""
    lines = []
    shares, ranks = artifact.relative(scores), artifact.ranks(scores)
    spreads, places = (entry.get(key) or [None] * len(scores) for key in ("intervals", "rank_intervals"))
    for score, share, rank, spread, place in zip(scores, shares, ranks, spreads, places, strict=True):
        rank_line = f"rank {rank} of {integer(len(scores))}"
        lines.append(
            [
                f"importance {significant(score)} {interval(spread)}".strip(),
                f"{percent(share, 2)} of all importance",
                f"{rank_line}, from {place[0]} to {place[1]}" if place else rank_line,
            ]
        )
    return lines


def _counts(entry: Mapping[str, Any]) -> str:
    if not entry.get("spans"):
        return "no spans"
    found = plural(entry["spans"], "span")
    return f"{found} in {plural(entry['traces'], 'trace')}" if entry.get("traces") else found


def shift_grids(shift: Mapping[str, Any], kind: Kind) -> Grids:
    """Arrange one part of a loaded importance shift; increases are shown as positive numbers."""
    columns = []
    for behaviour, entry in shift["behaviours"].items():
        before, after = entry["relative"]
        places = zip(artifact.ranks(before), artifact.ranks(after), strict=True)
        lines = [
            [
                f"relative importance {percent(first, 2)} → {percent(second, 2)}",
                f"{'lost' if first >= second else 'gained'} {significant(100 * abs(first - second))} points",
                f"rank {was} → {now}",
            ]
            for first, second, (was, now) in zip(before, after, places, strict=True)
        ]
        values = np.abs(entry[kind]) if kind == "increases" else np.array(entry[kind])
        columns.append(Values(behaviour, f"{percent(entry['moved'])} moved", values, lines))
    columns += [Values(behaviour, reason, None, []) for behaviour, reason in shift["skipped"].items()]
    names = {"decreases": "decrease", "increases": "increase", "net": "loss"}
    measure = Measure(f"{names[kind]} of relative importance", signed=kind == "net")
    return arrange(measure, shift["modules"], columns)


def arrange(measure: Measure, modules: Sequence[Mapping[str, Any]], columns: Iterable[Values]) -> Grids:
    """Put every module's value into its cell, all experts of a layer and kind into one, as their sum; ranks count from
    1, ties in the order of the modules."""
    modules, columns = _of_cells(modules, columns)
    kinds = list(dict.fromkeys(module["kind"] for module in modules))
    # What belongs to no layer (embeddings, head: 0 or none) is alone in its row: its cell is the first.
    places = np.array([(module["layer"] or 1) - 1 for module in modules], int)
    rows = np.array([kinds.index(module["kind"]) for module in modules], int)
    layers = int(places.max(initial=-1)) + 1

    def grid(values: Any, empty: Any, dtype: Any) -> np.ndarray:
        filled = np.full((len(kinds), layers), empty, dtype=dtype)
        filled[rows, places] = values
        return filled

    panels = []
    for behaviour, counts, values, lines in columns:
        top, ranks, known = None, np.zeros(len(modules), int), np.full(len(modules), np.nan)
        texts = ["\n".join(line) for line in lines] or ["not measured"] * len(modules)
        if values is not None:
            ranks, known = artifact.ranks(values), values
            best = int(ranks.argmin())
            if values[best] > 0:
                top = Top(int(rows[best]), int(places[best]) + 1, modules[best]["label"])
        panels.append(
            Panel(
                behaviour,
                words(behaviour),
                counts,
                grid(known, np.nan, float),
                grid(ranks, 0, int),
                grid(texts, "", object),
                top,
            )
        )
    labels = grid([module["label"] for module in modules], "", object)
    maximum = max((float(np.nanmax(np.abs(panel.values))) for panel in panels if panel.top), default=0.0)
    return Grids(measure, kinds, layers, len(modules), labels, panels, maximum or 1.0)


def _of_cells(
    modules: Sequence[Mapping[str, Any]], columns: Iterable[Values]
) -> tuple[Sequence[Mapping[str, Any]], Iterable[Values]]:
    """One module for each cell: experts of one layer and kind are put together."""
    cells: dict[tuple[Any, str], list[int]] = {}
    for number, module in enumerate(modules):
        cells.setdefault((module["layer"], module["kind"]), []).append(number)
    if len(cells) == len(modules):
        return modules, columns
    merged = []
    for members in cells.values():
        first = modules[members[0]]
        label = first["label"] if len(members) == 1 else f"{first['layer']}_{first['kind']} ({len(members)} experts)"
        merged.append({**first, "label": label})

    def together(column: Values) -> Values:
        if column.values is None:
            return column
        sums = np.array([column.values[members].sum() for members in cells.values()])
        lines = [
            column.lines[members[0]]
            if len(members) == 1
            else [f"{significant(total)} in all", f"most: {modules[_most(column.values, members)]['label']}"]
            for members, total in zip(cells.values(), sums, strict=True)
        ]
        return column._replace(values=sums, lines=lines)

    return merged, [together(column) for column in columns]


def _most(values: np.ndarray, members: Sequence[int]) -> int:
    return max(members, key=lambda number: values[number])


def layer_ticks(layers: int) -> list[int]:
    """Layers to label on an axis: the first, the last, and round ones that crowd neither."""
    step = 5 if layers <= WIDE_LAYERS else 10
    if layers <= 12:
        return list(range(1, layers + 1))
    middle = [layer for layer in range(step, layers, step) if layers - layer > step / 2]
    return [1, *middle, layers]


def scale_ticks(grids: Grids) -> list[float]:
    """Round values along the scale, with one more near 0, where the square-root scale is stretched.

    Where two come so close that their labels would meet, the larger one stays.
    """
    found = [float(tick) for tick in MaxNLocator(4).tick_values(0, grids.maximum) if 0 < tick <= grids.maximum]
    # Signed scales have half the room for each sign.
    room = _TICK_ROOM * (2 if grids.measure.signed else 1)
    ticks: list[float] = []
    for tick in reversed([found[0] / 5, *found]):
        place = math.sqrt(tick / grids.maximum)
        if place >= room and (not ticks or math.sqrt(ticks[0] / grids.maximum) - place >= room):
            ticks.insert(0, tick)
    return [*(-tick for tick in reversed(ticks) if grids.measure.signed), 0.0, *ticks]


def summary_line(grids: Grids) -> str:
    """The heatmaps in words, for those who can't see them."""
    tops = "; ".join(f"{panel.title.lower()}: {panel.top.label}" for panel in grids.panels if panel.top)
    about = f"{words(grids.measure.name)} of {integer(grids.modules)} modules, {grids.layers} layers"
    return f"{about}. Top: {tops or 'none'}."
