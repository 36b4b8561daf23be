"""The stages that a run will go through, by the names of its record, and how long each may take."""

from __future__ import annotations

from mixprec.pipeline import costs
from mixprec.pipeline.checks import Checked
from mixprec.recipe import Recipe

#: Stages of the estimate that are made within another one of the record.
_WITHIN = {"candidates": "sensitivity", "guidance": "sensitivity", "importance": "attribute"}
_EACH = {"evaluation": "evaluate", "benchmarks": "benchmarks"}
#: What a shift is made of, for one model.
_SHIFTED = ("generate", "attribute")


def expected(chosen: Recipe, found: Checked) -> list[tuple[str, float | None]]:
    """Name of each stage -> CPU seconds by ``costs``, in order; None where nothing tells."""
    seconds: dict[str, float | None] = {}

    def add(name: str, more: float | None) -> None:
        known = seconds.get(name, 0.0)
        seconds[name] = None if known is None or more is None else known + more

    for each in costs.stages(chosen, found):
        names = recorded(each.name, chosen)
        for name in names:
            add(name, None if each.seconds is None else each.seconds / len(names))
    # What is done once comes first, then all of one variant after all of another, then shifts.
    order = {name: number for number, name in enumerate(chosen.all_variants)}

    def place(name: str) -> int:
        kind, _, variant = name.partition("/")
        return len(order) if variant and kind in _SHIFTED else order.get(variant, -1)

    return sorted(seconds.items(), key=lambda item: place(item[0]))


def recorded(name: str, chosen: Recipe) -> list[str]:
    """What the run's record calls a stage of the estimate; several names for one that is made variant by variant."""
    kind, _, variant = name.partition(" ")
    if kind == "shift" and chosen.shift is not None:
        return [f"{part}/{variant}" for part in _SHIFTED if part != "generate" or chosen.shift.traces == "own"]
    if name in _EACH:
        if name == "benchmarks":  # those that a server answers have stages of their own
            return [f"{_EACH[name]}/{each}" for each in chosen.answering]
        return ["reference", *(f"{_EACH[name]}/{each}" for each in chosen.all_variants)]  # the original is a model too
    if variant:
        return [f"{'compress' if kind == 'tune' else kind}/{variant}"]
    return [_WITHIN.get(kind, kind)]
