"""What the jobs of a run do, in whichever process; what one of them comes to is kept for those behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

from mixprec.core import events
from mixprec.evaluate.engines import templates
from mixprec.models.model import Model
from mixprec.pipeline import damage, loadable, own, variants
from mixprec.pipeline.agreement import agree
from mixprec.pipeline.benchmarks import Benchmarks, labels_of
from mixprec.pipeline.context import Context
from mixprec.pipeline.evaluation import Evaluator, material
from mixprec.pipeline.importance import importance
from mixprec.pipeline.jobs import BASE, Job, Kind, shifting
from mixprec.pipeline.plans import plan_of
from mixprec.plan.rules import needs_spectra
from mixprec.plan.schema import Plan


class Prepared(NamedTuple):
    """Fingerprints of the stages that all others stand on, None for those that the recipe doesn't have.

    ``learned``: of the student; ``written``: of its traces; ``scored``: of the tables of damage. ``importance``: of
    importance.json, whose fingerprint is ``stamp``.
    """

    learned: str | None
    written: str | None
    importance: dict[str, Any] | None
    stamp: str | None
    scored: str | None


class Work(Context):
    """One recipe's work in one folder, job by job."""

    def do(self, job: Job) -> None:
        """Do a job, and what it stands on where that isn't done yet."""
        _DO[job.kind](self, job)

    def look(self, job: Job) -> None:
        """See to it that all that a job stands on is there, in a process of its own.

        Raises UserError for what isn't, as this process would make it.
        """
        with self.stages.all_there():
            if job.kind != "prepare":  # which makes what the model and its calibration data may be
                self.prepared  # noqa: B018 (looked at now)
                if self.recipe.calibrates:
                    self.calibration  # noqa: B018 (what there is to say of it was said before)
            for name in job.after:
                kind, _, of = name.partition("/")
                if kind not in ("prepare", "cells"):  # what these leave besides is looked at by who needs it
                    _DO[kind](self, Job(kind, of))  # type: ignore[index, arg-type]

    @cached_property
    def prepared(self) -> Prepared:
        """The stages that variants share."""
        learned = own.learn(self)
        written = own.generate(self, self.model, self.own_traces, "generate") if self.recipe.generate else None
        found, stamp = importance(self)
        self.options  # noqa: B018 (made now: all variants read it)
        scored = damage.score(self, found, stamp)
        return Prepared(learned, written, found, stamp, scored)

    def prepare(self) -> None:
        """All that more than one job would make otherwise."""
        found = self.prepared
        if any(needs_spectra(variant.plan) for variant in self.recipe.all_variants.values()):
            self.alphas  # noqa: B018 (made now)
        if self.recipe.ablation is not None:
            damage.solve(self, found.importance)
        if self.recipe.evaluate is not None and self.recipe.evaluate.traces is not None:
            material(self, self.model.encoder, self.model.context)

    @cached_property
    def _plans(self) -> dict[str, Plan]:
        return {}

    def plan(self, name: str) -> Plan:
        """A variant's plan. Raises UserError for one that its checkpoint, its runtime or another quantizer can't
        hold."""
        if name not in self._plans:
            found, spec = self.prepared, self.recipe.all_variants[name].plan
            made = plan_of(self, name, spec, found.importance, found.scored)
            loadable.check_variant(self.recipe, name, made, self.model.decoder, self.model.config)
            if peer := variants.peer_of(self, name):
                peer.check(made, self.model.decoder)
            self._plans[name] = made
        return self._plans[name]

    @cached_property
    def evaluator(self) -> Evaluator | None:
        """What variants are compared with the original by."""
        self.prepared  # noqa: B018 (the model may learn first)
        spec = self.recipe.evaluate
        return Evaluator(self) if spec and (spec.traces or spec.text) and self.recipe.all_variants else None

    @cached_property
    def benchmarks(self) -> Benchmarks | None:
        """Questions and the chat template: what is wrong with them is told when they are read."""
        spec = self.recipe.evaluate
        if spec is None or not spec.benchmarks or not self.recipe.all_variants:
            return None
        if spec.prompts == "chat" and self.recipe.answering:
            templates.require(self.model, "evaluate.prompts: chat", "write prompts: paper in evaluate", spec.template)
        return Benchmarks(spec.asking, spec.servers, self.model, self.stages, self.data)

    def folder(self, name: str) -> Path:
        """Where all of a variant lies."""
        return self.out / "variants" / name

    @cached_property
    def _made(self) -> dict[str, tuple[Model, str]]:
        return {}

    def made(self, name: str) -> tuple[Model, str]:
        """A variant's model, compressed, and its fingerprint."""
        if name not in self._made:
            plan = self.plan(name)
            self.model.release()  # from here on its memory is for the variants
            self._made[name] = variants.compressed(self, name, plan)
        return self._made[name]

    @cached_property
    def _rows(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {}

    def _row(self, kind: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if (kind, name) not in self._rows:
            self._rows[kind, name] = make()
        return self._rows[kind, name]

    def evaluated(self, name: str) -> dict[str, Any]:
        """What a variant's row of the summary says of its fidelity."""
        evaluator = self.evaluator
        if evaluator is None:
            return {}
        model, stamp = self.made(name)
        path = self.folder(name) / "result.json"
        return self._row("evaluate", name, lambda: evaluator.evaluate(name, model, stamp, path))

    def benchmarked(self, name: str) -> dict[str, Any]:
        """What a variant's row of the summary says of benchmarks."""
        benchmarks = self.benchmarks
        if benchmarks is None:
            return {}
        model, stamp = self.made(name)
        labels = labels_of(self.plan(name), self.model.decoder, self.recipe.all_variants[name].description)
        return self._row("benchmarks", name, lambda: benchmarks.row(name, model, stamp, self.folder(name), labels))

    def row(self, name: str) -> dict[str, Any]:
        """A variant's row of the summary."""
        model, _ = self.made(name)
        described = variants.described(self, name, self.plan(name), model)
        return described | self.evaluated(name) | self.benchmarked(name)

    @property
    def compared(self) -> list[str]:
        """The models whose importance may have shifted from the original's."""
        return shifting(self.recipe)

    def shifted(self, name: str) -> dict[str, Any] | None:
        """How far a model's importance is from the original's; None for a variant that is the original itself."""
        spec, importance = self.recipe.shift, self.prepared.importance
        if name == BASE and self.recipe.distill is not None:
            model, folder = self.base, self.out / BASE
        elif spec is not None and name in spec.models:
            model = spec.models[name].as_model(self.model.dtype, self.model.device)
            folder = self.out / "models" / name
        elif self.plan(name).changed:
            model, folder = self.made(name)[0], self.folder(name)
        else:
            return None
        return self._row("shift", name, lambda: own.shift(self, importance, name, model, folder) or {}) or None

    @cached_property
    def agreed(self) -> dict[str, Any]:
        """How far two annotations of the traces agree; empty where the recipe has one."""
        return agree(self, self.prepared.stamp)

    def _measure_cells(self, job: Job) -> None:
        damage.measure_part(self, self.out / "ablation", self.prepared.importance, job.part)

    def _ablate(self) -> None:
        found = self.prepared.importance
        with events.stage("ablation"):
            damage.ablate(self, self.out / "ablation", found)


#: Kind -> what is done.
_DO: Final[Mapping[Kind, Callable[[Work, Job], object]]] = {
    "prepare": lambda work, _: work.prepare(),
    "cells": Work._measure_cells,
    "ablation": lambda work, _: work._ablate(),
    "exchange": lambda work, job: work.plan(job.of),
    "reference": lambda work, _: work.evaluator,
    "compress": lambda work, job: work.made(job.of),
    "evaluate": lambda work, job: work.evaluated(job.of),
    "benchmarks": lambda work, job: work.benchmarked(job.of),
    "agreement": lambda work, _: work.agreed,
    "shift": lambda work, job: work.shifted(job.of),
}
