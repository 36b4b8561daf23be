"""Importance shift: how relative importance changes from one model to another (arXiv 2504.02010 §2.3, Appendix H).

The first model is the one that reasons better: the original before its quantized copy, the distilled model before its
base. Both have the same modules. And ranks as the paper's Table 3 words them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.shapes import Count, Number, Shape, check
from mixprec.importance import artifact
from mixprec.models.labels import select

#: Which part of a shift: where the second model lost importance (what the paper draws), gained it, or both.
Kind = Literal["decreases", "increases", "net"]
KINDS: tuple[Kind, ...] = ("decreases", "increases", "net")


def shift(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str] = ("first", "second")
) -> dict[str, Any]:
    """The shift artifact of two importance artifacts; ``names`` stand in it and in messages.

    Per behaviour ``relative``, RI of the first and of the second; ``net`` = RI(first) - RI(second), its positive part
    ``decreases`` and its negative part ``increases``; ``moved``, the sum of the decreases; and how alike both rank
    the modules. A behaviour without spans in one of them is in ``skipped``. ``between`` compares the behaviours
    within each artifact.

    Raises UserError where the two have different modules, or no behaviour with spans in common.
    """
    _check_modules(first, second, names)
    behaviours, skipped = {}, {}
    for behaviour in dict.fromkeys([*first["behaviours"], *second["behaviours"]]):
        entries = [each["behaviours"].get(behaviour) for each in (first, second)]
        without = [name for name, entry in zip(names, entries, strict=True) if not entry or not any(entry["scores"])]
        if without:
            skipped[behaviour] = f"no importance in {' and '.join(without)}"
            continue
        behaviours[behaviour] = _of_behaviour(*(entry["scores"] for entry in entries))
    if not behaviours:
        raise UserError(f"{names[0]}, {names[1]}: no behaviour has importance in both; {skipped}")
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "first": _origin(first, names[0]),
        "second": _origin(second, names[1]),
        "modules": first["modules"],
        "behaviours": behaviours,
        "skipped": skipped,
        "between": {"first": between_behaviours(first), "second": between_behaviours(second)},
    }


class _Labelled(Shape):
    address: str
    label: str
    layer: Annotated[int, Field(ge=0, le=1000)] | None
    kind: str


class _Side(Shape):
    name: str
    preset: str | None = None


class _Moved(Shape):
    relative: Annotated[list[list[Number]], Field(min_length=2, max_length=2)]
    decreases: list[Number]
    increases: list[Number]
    net: list[Number]
    moved: Number
    spearman: Number | None
    top10_overlap: Count | None


class _Shift(Shape):
    first: _Side
    second: _Side
    modules: list[_Labelled]
    behaviours: dict[str, _Moved]
    skipped: dict[str, str]

    @model_validator(mode="after")
    def _of_every_module(self) -> _Shift:
        for name, entry in self.behaviours.items():
            lists = (*entry.relative, entry.decreases, entry.increases, entry.net)
            if any(len(each) != len(self.modules) for each in lists):
                raise ValueError(f"behaviours: {name}: not one value for each module")
        return self


def read(path: Path) -> dict[str, Any]:
    """Read shift.json. Raises UserError where it is missing, broken, of another schema version or shape."""
    return check(artifacts.read_versioned(path), path, _Shift)


def _check_modules(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    ours, theirs = ([module["address"] for module in each["modules"]] for each in (first, second))
    if ours == theirs:
        return
    where = f"{names[0]}, {names[1]}: importance of different modules"
    only = next((address for address in [*ours, *theirs] if (address in ours) != (address in theirs)), None)
    told = f"{only} is in one of them only" if only else "their order differs"
    raise UserError(f"{where} ({len(ours)} and {len(theirs)}; {told}); compare models of one architecture and size")


def _origin(importance: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "model": (importance.get("provenance") or {}).get("model"),
        "preset": importance.get("preset"),
        "traces": importance.get("traces"),
    }


def _of_behaviour(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    before, after = artifact.relative(first), artifact.relative(second)
    net = before - after
    decreases = np.maximum(net, 0)
    return {
        "relative": [before.tolist(), after.tolist()],
        "net": net.tolist(),
        "decreases": decreases.tolist(),
        "increases": np.minimum(net, 0).tolist(),
        "moved": float(decreases.sum()),
        **artifact.agreement(first, second),
    }


def between_behaviours(importance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How alike any two behaviours of one artifact rank the modules; behaviours without importance left out."""
    scores = {name: entry["scores"] for name, entry in importance["behaviours"].items() if any(entry["scores"])}
    return [
        {"behaviours": [one, other], **artifact.agreement(scores[one], scores[other])}
        for one, other in itertools.combinations(scores, 2)
    ]


class Place(NamedTuple):
    """Where a module ranks by the sum of its importance over behaviours, each time (rank from 1, of how many).

    row: among the layers' modules of its kind. column: among its layer's. ``share``: of all modules' sum.
    """

    label: str
    total: float
    share: float
    overall: tuple[int, int]
    row: tuple[int, int]
    column: tuple[int, int]

    @property
    def words(self) -> tuple[str, str, str]:
        """As in Table 3: ``1st overall``, ``2nd col``, ``last row``."""
        return f"{ordinal(*self.overall)} overall", f"{ordinal(*self.column)} col", f"{ordinal(*self.row)} row"


def places(importance: Mapping[str, Any]) -> list[Place]:
    """Every module's place, in the order of the modules (Table 3 of arXiv 2504.02010)."""
    rows = importance["modules"]
    totals = np.sum([entry["scores"] for entry in importance["behaviours"].values() if entry.get("scores")], axis=0)
    ranks = zip(
        _ranks_within(totals, [None] * len(rows)),
        _ranks_within(totals, [row["kind"] for row in rows]),
        _ranks_within(totals, [row["layer"] for row in rows]),
        strict=True,
    )
    return [
        Place(row["label"], float(total), float(share), *within)
        for row, total, share, within in zip(rows, totals, artifact.relative(totals), ranks, strict=True)
    ]


def _ranks_within(values: np.ndarray, groups: Sequence[Any]) -> list[tuple[int, int]]:
    """Rank of each value among those of its group, and the group's size."""
    found: list[tuple[int, int]] = [(0, 0)] * len(groups)
    for group in dict.fromkeys(groups):
        members = [i for i, each in enumerate(groups) if each == group]
        for i, rank in zip(members, artifact.ranks(values[members]), strict=True):
            found[i] = int(rank), len(members)
    return found


def ordinal(rank: int, count: int) -> str:
    """``1st``, ``2nd``, ``11th``; ``last`` for the last of several."""
    if rank == count > 1:
        return "last"
    suffix = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{suffix}"


class _Row(NamedTuple):
    """What selectors ask of a module."""

    address: str
    layer: int
    kind: str
    label: str


def find_places(importance: Mapping[str, Any], labels: Sequence[str]) -> list[Place]:
    """The places of labels, selectors or addresses (``32_up``, ``last_mlp``, ``*_gate``), by default of the top ten.

    Raises UserError for a selector that matches nothing, with what was most likely meant.
    """
    addresses = [module["address"] for module in importance["modules"]]
    everything = dict(zip(addresses, places(importance), strict=True))
    if not labels:
        return sorted(everything.values(), key=lambda place: place.overall)[: artifact.TOP]
    known = [_Row(row["address"], row["layer"], row["kind"], row["label"]) for row in importance["modules"]]
    found = dict.fromkeys(module.address for label in labels for module in select(known, label))
    return [everything[address] for address in found]
