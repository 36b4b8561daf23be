"""Ablation: sets of modules in formats, everything else as it is, and what that does to the predictions.

ablation:
  each: "*_*"
  sets: {last_mlp: last_mlp, attention of layer 1: 1_attn}
  formats: [w3g64]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mixprec.compress.candidatefiles import Candidates
from mixprec.core import artifacts
from mixprec.core.progress import bar
from mixprec.evaluate.passages import Passage
from mixprec.plan.sensitivity import ALL, Sensitivity
from mixprec.sensitivity import cells, validity
from mixprec.sensitivity.cells import Result
from mixprec.sensitivity.passages import Scored, inside
from mixprec.sensitivity.run import Subject, importance_alone
from mixprec.sensitivity.sets import CONTROL, Cell, cells_of
from mixprec.sensitivity.spec import AblationSpec
from mixprec.traces.store import BEHAVIOURS
from mixprec.walk.restarts import Restarts


def scored(passages: Sequence[Passage]) -> list[Scored]:
    """Passages with all tokens as a target, and each behaviour that has spans in any of them."""
    seen = [name for name in BEHAVIOURS if any(span.behaviour == name for p in passages for span in p.spans)]
    return [
        Scored(
            passage.tokens,
            {ALL: torch.ones(len(passage.tokens) - 1)} | {name: inside(passage, name).float() for name in seen},
        )
        for passage in passages
    ]


def measure(
    subject: Subject,
    spec: AblationSpec,
    candidates: Candidates,
    passages: Sequence[Passage],
    folder: Path,
    part: tuple[int, int] | None = None,
) -> dict[Cell, Result]:
    """Measure the cells that are not in ``folder`` yet; ``part``: as in cells.measure."""
    measured_on, wanted = scored(passages), cells_of(spec, subject.model.decoder)
    restarts = Restarts(subject.model.load(), [each.tokens for each in measured_on], spec.stride)
    with bar("ablate", len(wanted), "cells") as advance:
        return cells.measure(wanted, candidates, restarts, measured_on, folder, advance, part)


def ablate(
    subject: Subject,
    spec: AblationSpec,
    candidates: Candidates,
    passages: Sequence[Passage],
    tables: Sequence[Sensitivity],
    folder: Path,
) -> dict[str, Any]:
    """Measure all cells and judge the ``tables`` by those of single modules, and importance alone where there is one;
    returns what ablation.json holds.

    Under a launcher processes share the cells. Finished ones in ``folder`` are not measured again.
    """
    wanted, measured_on = cells_of(spec, subject.model.decoder), scored(passages)
    known = measure(subject, spec, candidates, passages, folder)
    found: Mapping[Cell, Result] = {cell: known[cell] for cell in wanted}
    choices = [str(choice) for choice in spec.formats]
    tables = [*tables, *importance_alone(subject, list(measured_on[0].weights), choices)]
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "model": subject.model.id,
        "method": subject.method,
        "passages": len(passages),
        "tokens": {target: sum(known[CONTROL].counts[target]) for target in measured_on[0].weights},
        "control": max(abs(known[CONTROL].mean(metric, ALL)) for metric in cells.METRICS),
        "cells": validity.cell_rows(found, spec.resamples),
        "validity": validity.judge(tables, found, spec.resamples),
        "scores": {
            f"{table.scorer}, {table.target}": {
                cell.name + ", " + cell.candidate: table.scores[cell.addresses[0]].get(cell.candidate)
                for cell in wanted
                if len(cell.addresses) == 1
            }
            for table in tables
        },
        "provenance": artifacts.provenance(
            model=subject.model.identity, calibration=subject.digest, candidates=candidates.digest
        ),
    }
