"""The jobs that a run falls into, and which of them others wait for: known from the recipe alone.

A job is a part of a run that one process does in the run's folder. Its results are stages there, so a job that is done
is kept, whoever did it, and the run is put together from the folder in the recipe's order, whatever order the jobs had.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

from mixprec.plan.rules import needs_spectra
from mixprec.recipe import Recipe

#: The model before it learned, among those whose importance is compared.
BASE: Final = "base"

#: ``prepare``: what all others read: a student, traces and their spans, importance, tables of damage, candidates.
#: ``agreement``: a second annotation. ``cells``: a part of an ablation's measurements; ``ablation``:
#: its page, and what of its cells is left. ``exchange``: a plan improved by measuring. ``reference``: the original's
#: predictions. The others: what is made of one variant.
Kind = Literal[
    "prepare",
    "agreement",
    "cells",
    "ablation",
    "exchange",
    "reference",
    "compress",
    "evaluate",
    "benchmarks",
    "shift",
]


class Job(NamedTuple):
    """``of``: the variant, or which part of so many (``2of4``). ``after``: names of the jobs that it waits for."""

    kind: Kind
    of: str = ""
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called, as the run's record calls stages."""
        return f"{self.kind}/{self.of}" if self.of else self.kind

    @property
    def part(self) -> tuple[int, int]:
        """Which part it is, from 0, of how many."""
        number, _, count = self.of.partition("of")
        return int(number) - 1, int(count)


def jobs_of(chosen: Recipe, parts: int = 1) -> list[Job]:
    """All jobs of a recipe, each behind those that it waits for; an ablation's cells in so many ``parts``."""
    return list(_jobs(chosen, parts))


def _jobs(chosen: Recipe, parts: int) -> Iterator[Job]:
    before: tuple[str, ...] = ()
    if _prepares(chosen):
        yield Job("prepare")
        before = ("prepare",)
    if chosen.agreement is not None:
        yield Job("agreement", after=before)
    if chosen.ablation is not None:
        cells = [Job("cells", f"{number}of{parts}", before) for number in range(1, parts + 1)] if parts > 1 else []
        yield from cells
        yield Job("ablation", after=before + tuple(each.name for each in cells))
    exchanged = [name for name, each in chosen.all_variants.items() if each.plan.budget and each.plan.budget.exchange]
    yield from (Job("exchange", name, before) for name in exchanged)
    evaluated = _evaluates(chosen)
    if evaluated:
        yield Job("reference", after=before)
    for name in chosen.all_variants:
        yield Job("compress", name, (f"exchange/{name}",) if name in exchanged else before)
        if evaluated:
            yield Job("evaluate", name, ("reference", f"compress/{name}"))
        if chosen.evaluate is not None and chosen.evaluate.benchmarks:
            yield Job("benchmarks", name, (f"compress/{name}",))
    if chosen.shift is not None:
        for name in shifting(chosen):
            yield Job("shift", name, (f"compress/{name}",) if name in chosen.all_variants else before)


def shifting(chosen: Recipe) -> list[str]:
    """The models whose importance may have shifted from the original's: the base, others, variants."""
    others = list(chosen.shift.models) if chosen.shift is not None else []
    return ([BASE] if chosen.distill is not None else []) + others + list(chosen.all_variants)


def _prepares(chosen: Recipe) -> bool:
    """Whether variants share more than the model and its calibration data."""
    parts = (chosen.distill, chosen.generate, chosen.importance, chosen.sensitivity, chosen.compress.fine_tuned_from)
    spectra = any(needs_spectra(variant.plan) for variant in chosen.all_variants.values())
    annotated = chosen.evaluate is not None and chosen.evaluate.traces is not None
    return spectra or annotated or chosen.ablation is not None or any(part is not None for part in parts)


def _evaluates(chosen: Recipe) -> bool:
    spec = chosen.evaluate
    return bool(spec and (spec.traces or spec.text) and chosen.all_variants)


def gpus_of(chosen: Recipe, job: Job, spread: int = 1) -> int:
    """How many GPUs a job uses; ``spread``: over how many of them ``device: auto`` spreads a model."""
    engine = chosen.evaluate.engine if chosen.evaluate is not None else None
    if job.kind == "benchmarks" and job.of not in chosen.answering:
        return 0
    if job.kind == "benchmarks" and engine is not None and engine.kind == "vllm":
        return engine.gpus
    device = chosen.model.device
    if device == "auto":
        return 1 if job.kind == "compress" else spread
    return 1 if device.startswith("cuda") else 0
