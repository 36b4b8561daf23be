"""The stages of a run that predict and measure damage: tables of sensitivity, ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixprec.compress import RULES as SOLVING_RULES
from mixprec.compress.candidatefiles import Candidates
from mixprec.core import artifacts, processes
from mixprec.evaluate.passages import Passage
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


def solve(run: Context, importance: dict[str, Any] | None = None) -> Candidates:
    """What single modules become in all formats of the recipe's tables and ablation, solved once."""
    return subject(run, run.out / "sensitivity", importance).candidates(run.recipe.candidates())


def measure_part(run: Context, folder: Path, importance: dict[str, Any] | None, part: tuple[int, int]) -> None:
    """Measure a part of the cells of the recipe's ``ablation``, beside processes that measure the others."""
    spec = run.recipe.ablation
    assert spec is not None  # who calls sees to it
    scored = subject(run, run.out / "sensitivity", importance)
    ablation.measure(scored, spec, solve(run, importance), _passages(run), folder / "cells", part)


def _passages(run: Context) -> Sequence[Passage]:
    with processes.main_first():
        return material(run, run.model.encoder, run.model.context)[0].all


def ablate(run: Context, folder: Path, importance: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure the recipe's ``ablation`` on what it evaluates on, and judge the tables of its ``sensitivity``.

    Writes ablation.json and its page into ``folder``. Under a launcher processes share the work.
    """
    spec = run.recipe.ablation
    assert spec is not None  # who calls sees to it
    scored = subject(run, run.out / "sensitivity", importance)
    candidates = solve(run, importance)
    if run.recipe.sensitivity is not None:
        scoring.score(scored, run.recipe.sensitivity, candidates)
        processes.wait()  # the main one writes the tables
    tables = scoring.load_all(scored)
    measured_on = _passages(run)
    result = ablation.ablate(scored, spec, candidates, measured_on, tables, folder / "cells")
    if processes.is_main():
        artifacts.write_json(folder / "ablation.json", result)
        write_ablation(result, folder)
    return result
