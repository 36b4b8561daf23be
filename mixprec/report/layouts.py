"""The plan's picture for a page: bits of every layer and kind of each variant, embedding and head included."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex

from mixprec.models.labels import kinds_among
from mixprec.report.cells import Cell, CellMap, CellPanel
from mixprec.report.formatting import bits, integer, plural

#: Ends of the scale, in bits per weight: what lies beyond has the end's colour. Between them it is logarithmic, as one
#: bit matters more among 2, 3 and 4 than above 8.
_LEAST, _MOST = 1.5, 16.0
_TICKS = (2, 3, 4, 6, 8, 16)
#: Up to so many layers there is room for numbers in the cells.
_NUMBERED = 36
#: Formats that are counted in words.
_FORMATS = 6


def plan_map(layouts: Mapping[str, Mapping[str, Any]]) -> CellMap | None:
    """A panel for each variant that changes something; None where none does. ``layouts``: variant -> layout.json."""
    shown = {name: layout for name, layout in layouts.items() if any(_changed(cell) for cell in layout["cells"])}
    if not shown:
        return None
    every = [cell for layout in shown.values() for cell in layout["cells"]]
    inside = kinds_among(cell["kind"] for cell in every if cell["layer"])
    kinds = [*(["embedding"] * any(cell["kind"] == "embedding" for cell in every)), *inside]
    kinds += ["head"] if any(cell["kind"] == "head" and not cell["layer"] for cell in every) else []
    layers = max(layout["layers"] for layout in shown.values())
    return CellMap(
        panels=[_panel(name, layout, kinds, layers) for name, layout in shown.items()],
        kinds=kinds,
        layers=layers,
        scale="bits per weight, scales included",
        bar=[(_colour(_LEAST * (_MOST / _LEAST) ** (step / 12)), 100 * step / 12) for step in range(13)],
        bar_ticks=[(100 * _place(tick), str(tick)) for tick in _TICKS],
        alt="Bits per weight by layer and kind of module: " + "; ".join(map(_in_words, shown.items())),
    )


def _panel(name: str, layout: Mapping[str, Any], kinds: Sequence[str], layers: int) -> CellPanel:
    cells = []
    for cell in layout["cells"]:
        x, wide = (cell["layer"] - 1, 1) if cell["layer"] else (0, layers)
        value, where = cell["bits"], f"{cell['layer']}_{cell['kind']}" if cell["layer"] else cell["kind"]
        text = f"{value:.3g}" if wide > 1 or layers <= _NUMBERED else ""
        row, place = kinds.index(cell["kind"]), _place(value)
        cells.append(Cell(x, row, _colour(value), _tip(where, cell), wide, text, place > 0.55))
    return CellPanel(name, _in_words((name, layout)).partition(": ")[2], cells)


def _tip(where: str, cell: Mapping[str, Any]) -> str:
    count = sum(cell["formats"].values())
    lines = [where if count == 1 else f"{where}, {plural(count, 'expert')}", f"{bits(cell['bits'])} bits per weight"]
    if count == 1:
        return "\n".join([*lines, *cell["formats"], f"{integer(cell['weights'])} weights"])
    most = sorted(cell["formats"].items(), key=lambda item: -item[1])
    return "\n".join([*lines, *(f"{number} × {name}" for name, number in most)])


def _in_words(item: tuple[str, Mapping[str, Any]]) -> str:
    """How many modules have which format; a tied head is the embedding."""
    name, layout = item
    formats: dict[str, int] = {}
    for cell in layout["cells"]:
        for format, count in cell["formats"].items():
            formats[format] = formats.get(format, 0) + count
    most = sorted(formats.items(), key=lambda pair: -pair[1])[:_FORMATS]
    told = ", ".join(f"{count:,} × {format}" for format, count in most)
    more = f" and {len(formats) - _FORMATS} more formats" if len(formats) > _FORMATS else ""
    return f"{name}: {told}{more}{'; the head is the embedding' if layout['tied'] else ''}"


def _changed(cell: Mapping[str, Any]) -> bool:
    return set(cell["formats"]) != {"keep"}


def _place(value: float) -> float:
    """0 to 1 along the scale."""
    return math.log(min(max(value, _LEAST), _MOST) / _LEAST) / math.log(_MOST / _LEAST)


def _colour(value: float) -> str:
    return to_hex(mpl.colormaps["viridis"](_place(value)))
