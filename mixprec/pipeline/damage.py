"""The stages of a run that predict and measure damage: tables of sensitivity, ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixprec.compress import RULES as SOLVING_RULES
from mixprec.core import artifacts, processes
from mixprec.pipeline.context import Context
from mixprec.pipeline.evaluation import material
from mixprec.plan.sensitivity import file_name
from mixprec.report.ablation import write_ablation
from mixprec.report.sensitivity import write_sensitivity
from mixprec.sensitivity import RULES, ablation
from mixprec.sensitivity import run as scoring
from mixprec.traces import spans


def subject(run: Context, folder: Path, importance: dict[str, Any] | None = None) -> scoring.Subject:
    """What is scored for the recipe's ``sensitivity``; tables go to ``folder``."""
    spec, compressing = run.recipe.sensitivity, run.recipe.compress
    traces: list[spans.AnnotatedTrace] = []
    if spec is not None and spec.behaviours and run.recipe.traces is not None:
        with processes.main_first():
            traces, _ = run.annotate(run.recipe.traces, run.out / "spans.jsonl", "annotate")
    return scoring.Subject(
        run.model.on_one_device,
        compressing.method,
        run.calibration,
        folder,
        options=run.options,
        traces=traces,
        importance=importance,
        memory_gb=compressing.memory_gb,
        guidance=run.guidance,
        outside=spec.outside if spec is not None else (),
    )


def score(run: Context, importance: dict[str, Any] | None, stamp: str | None) -> str | None:
    """The recipe's ``sensitivity``, once; returns the stage's fingerprint. ``stamp``: that of the importance."""
    spec, folder = run.recipe.sensitivity, run.out / "sensitivity"
    if spec is None:
        return None
    scored = subject(run, folder, importance)
    if spec.behaviours and run.recipe.traces is not None:
        _, traces = run.annotate(run.recipe.traces, run.out / "spans.jsonl", "annotate")
        stamp = artifacts.fingerprint(stamp, traces)
    candidates = {name: found.model_dump(mode="json") for name, found in run.recipe.candidates().items()}

    def make() -> None:
        solved = scored.candidates(run.recipe.candidates()) if spec.solves else None
        write_sensitivity(scoring.score(scored, spec, solved), folder)

    solving = [SOLVING_RULES, scored.digest, scored.options.model_dump(), candidates]
    return run.stages.do(
        "sensitivity",
        RULES,
        [*run.computing, stamp, *solving, spec.model_dump(mode="json")],
        [folder / file_name(spec.scorer, target) for target in ("all", *spec.behaviours)],
        make,
    )


def ablate(run: Context, folder: Path, importance: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure the recipe's ``ablation`` on what it evaluates on, and judge the tables of its ``sensitivity``.

    Writes ablation.json and its page into ``folder``. Under a launcher processes share the work.
    """
    spec = run.recipe.ablation
    assert spec is not None  # who calls sees to it
    scored = subject(run, run.out / "sensitivity", importance)
    candidates = scored.candidates(run.recipe.candidates())
    if run.recipe.sensitivity is not None:
        scoring.score(scored, run.recipe.sensitivity, candidates)
        processes.wait()  # the main one writes the tables
    tables = scoring.load_all(scored)
    with processes.main_first():
        measured_on = material(run, run.model.encoder, run.model.context)[0].all
    result = ablation.ablate(scored, spec, candidates, measured_on, tables, folder / "cells")
    if processes.is_main():
        artifacts.write_json(folder / "ablation.json", result)
        write_ablation(result, folder)
    return result
