"""The stages that a run will go through, by the names of its record, and how long each may take."""

from __future__ import annotations

from mixprec.pipeline import costs
from mixprec.pipeline.checks import Checked
from mixprec.recipe import Recipe

#: Stages of the estimate that are made within another one of the record.
_WITHIN = {"candidates": "sensitivity", "guidance": "sensitivity", "importance": "attribute"}
_EACH = {"evaluation": "evaluate", "benchmarks": "benchmarks"}


def expected(chosen: Recipe, found: Checked) -> list[tuple[str, float | None]]:
    """Name of each stage -> CPU seconds by ``costs``, in order; None where nothing tells."""
    seconds: dict[str, float | None] = {}

    def add(name: str, more: float | None) -> None:
        known = seconds.get(name, 0.0)
        seconds[name] = None if known is None or more is None else known + more

    for each in costs.stages(chosen, found):
        kind, _, variant = each.name.partition(" ")
        if each.name in _EACH:
            for name in chosen.all_variants:
                share = None if each.seconds is None else each.seconds / len(chosen.all_variants)
                add(f"{_EACH[each.name]}/{name}", share)
        elif variant:
            add(f"{'compress' if kind == 'tune' else kind}/{variant}", each.seconds)
        else:
            add(_WITHIN.get(kind, kind), each.seconds)
    # What is done once comes first, then all of one variant after all of another.
    order = {name: number for number, name in enumerate(chosen.all_variants)}
    return sorted(seconds.items(), key=lambda item: order.get(item[0].partition("/")[2], -1))
