"""A run that needs more memory than there is: which settings lower what its stages take, and to how much.

What a setting brings is no rule of thumb: the estimate (costs.py) is made once more of the recipe with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from mixprec.core import events
from mixprec.core.errors import UserError
from mixprec.core.memory import ran_out
from mixprec.pipeline import costs
from mixprec.pipeline.checks import Checked
from mixprec.pipeline.expected import recorded
from mixprec.recipe import Recipe
from mixprec.report.formatting import size

#: Settings that take less memory, those first that change no number of the results.
_SETTINGS: tuple[tuple[str, Any], ...] = (
    ("importance.stream", True),
    ("importance.sweep_gb", 1.0),
    ("compress.memory_gb", 0.5),
    ("evaluate.engine.batch", 1),
    ("generate.engine.batch", 1),
    ("distill.recompute", True),
    ("distill.at_once", 1),
    ("compress.tune.batch", 1),
    ("compress.tune.dtype", "bfloat16"),
    ("evaluate.max_tokens", 512),
    ("importance.max_tokens", 2048),
    ("model.dtype", "bfloat16"),
)
#: A setting that brings less than this share is none.
_WORTH = 0.03


def refuse(chosen: Recipe, found: Checked, limit: int | None) -> Iterator[str]:
    """What is wrong with a ``limit`` in bytes: each stage that takes more, and what would lower it."""
    if limit is None:
        return
    for name, needed in needs(chosen, found).items():
        if needed > limit:
            told = f"--max-memory: stage {name} takes about {size(needed)}, the limit is {size(limit)}"
            yield f"{told}{_remedy(chosen, found, name, needed, limit)}"


def needs(chosen: Recipe, found: Checked) -> dict[str, int]:
    """Stage, by the name of the run's record -> bytes that it takes by the estimate."""
    known: dict[str, int] = {}
    for each in costs.stages(chosen, found):
        for name in recorded(each.name, chosen):
            known[name] = max(known.get(name, 0), each.memory)
    return known


@contextmanager
def advised(chosen: Recipe, found: Checked | None, limit: int | None) -> Iterator[None]:
    """Where memory runs out inside, say what stage it was and what to change.

    Raises UserError then, with what the estimate says of the stage.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        told = ran_out(problem)
        if told is None:
            raise
        raise UserError(told_of(told, chosen, found, limit)) from None


def told_of(told: str, chosen: Recipe, found: Checked | None, limit: int | None) -> str:
    """The message for a run whose memory ran out in the stage that began last."""
    name = events.begun()
    where = f"stage {name}: {told}" if name else told
    kept = "What is finished is kept: the same command goes on"
    needed = None if found is None or name is None else needs(chosen, found).get(name)
    if found is None or name is None or needed is None:
        return f"{where}; see what stages take with 'mixprec explain'. {kept}"
    advice = _remedy(chosen, found, name, needed, limit)
    return f"{where}; by the estimate it takes {size(needed)}{advice}. {kept}"


def _remedy(chosen: Recipe, found: Checked, name: str, needed: int, limit: int | None) -> str:
    """Settings, each with what the stage would take, those that suffice before others."""
    lower = sorted(_lower(chosen, found, name, needed), key=lambda pair: limit is None or pair[1] > limit)
    if not lower:
        return "; no setting lowers it: take a smaller model, or a machine with more memory"
    parts = [f"{setting} ({size(bytes)})" for setting, bytes in lower]
    return f"; set {' or '.join(parts)}"


def _lower(chosen: Recipe, found: Checked, name: str, needed: int) -> Iterator[tuple[str, int]]:
    for key, value in _SETTINGS:
        changed = _with(chosen, key, value)
        if changed is None:
            continue
        now = needs(changed, found).get(name, needed)
        if now < (1 - _WORTH) * needed:
            yield f"{key}={str(value).lower() if isinstance(value, bool) else value}", now


def _with(chosen: Recipe, key: str, value: Any) -> Recipe | None:
    """The recipe with another value of a key that it has; None where it has it not, or it is that already."""
    *parts, last = key.split(".")
    part: Any = chosen
    for name in parts:
        part = getattr(part, name, None)
    before = getattr(part, last, None)
    smaller = isinstance(value, int | float) and not isinstance(value, bool)
    if part is None or before == value or (smaller and before is not None and before < value):
        return None
    data = held = chosen.model_dump(exclude_unset=True)
    for name in parts:
        held = held.setdefault(name, {})
    held[last] = value
    try:
        return Recipe.model_validate(data)
    except ValidationError:  # the setting does not go with others of the recipe
        return None
