"""From a model to tables of predicted damage: candidates, then sums or measurements, then one table per target.

Folder::

    <scorer>.json <scorer>_<behaviour>.json   the tables (plan/sensitivity.py)
    candidates/    restored weights of every module in every candidate, block by block
    sums/          of gradients, one file per passage
    measured/      one line per module and candidate
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mixprec.calibration.data import Calibration
from mixprec.compress import candidates as solving
from mixprec.compress.candidatefiles import Candidates
from mixprec.compress.guided import Guidance, guide, wanted
from mixprec.compress.options import SolveOptions
from mixprec.core import artifacts, processes
from mixprec.core.errors import UserError
from mixprec.core.progress import bar
from mixprec.importance import artifact
from mixprec.models.decoder import Linear
from mixprec.models.labels import place_of
from mixprec.models.model import Model
from mixprec.plan import sensitivity
from mixprec.plan.methods import Method
from mixprec.plan.schema import Treatment
from mixprec.plan.sensitivity import ALL, DROPPED, Sensitivity
from mixprec.sensitivity import cells, evidence, reap, scorers
from mixprec.sensitivity.passages import Scored, counted, from_behaviours, from_calibration
from mixprec.sensitivity.sets import Cell
from mixprec.sensitivity.spec import GRADIENT, Scorer, SensitivitySpec
from mixprec.sensitivity.sweep import State
from mixprec.traces.spans import AnnotatedTrace
from mixprec.walk.blocks import OUTSIDE
from mixprec.walk.losses import Row
from mixprec.walk.options import MEMORY_GB
from mixprec.walk.restarts import Restarts

#: Scorer -> target -> address -> candidate -> damage.
Found = dict[str, dict[str, dict[str, dict[str, float]]]]

#: In ablation.json: the paper's importance as it is, which is no scorer.
IMPORTANCE_ALONE = "importance_alone"


@dataclass
class Subject:
    """The model that is scored; ``folder``: where everything goes.

    ``calibration``: what candidates are solved on; None for an ablation by methods that look at no inputs. ``traces``:
    for behaviours. ``importance``: of importance.json. ``memory_gb``: 10^9 bytes of calibration states in memory.
    ``guidance``: where saliences lie, by default in the folder. ``outside``: embedding, head, where they are scored
    too: by measurement, whoever scores the blocks.
    """

    model: Model
    method: Method
    calibration: Calibration | None
    folder: Path
    options: SolveOptions = field(default_factory=SolveOptions)
    traces: Sequence[AnnotatedTrace] = ()
    importance: Mapping[str, Any] | None = field(default=None, repr=False)
    memory_gb: float = MEMORY_GB
    guidance: Path | None = None
    outside: Collection[str] = ()

    def scored(self, spec: SensitivitySpec) -> list[Scored]:
        """The passages that ``spec`` asks for.

        Raises UserError for behaviours without traces.
        """
        if not spec.behaviours:
            assert self.calibration is not None  # the recipe's checks see to it
            return from_calibration(self.calibration, spec.samples, spec.seed)
        if not self.traces:
            raise UserError("sensitivity.behaviours: spans come from traces; add traces: {source: …}, or give --spans")
        longest = min(spec.max_tokens, self.model.context)
        return from_behaviours(self.traces, self.model.encoder, spec.behaviours, spec.samples, longest, spec.seed)

    @property
    def digest(self) -> str | None:
        """Of the calibration tokens; None where there are none."""
        return self.calibration.digest if self.calibration else None

    def candidates(self, treatments: Mapping[str, Treatment]) -> Candidates:
        """All modules in all candidates, made by the main process of all machines; the others wait.

        Raises UserError where another machine doesn't see what it made.
        """
        digest = processes.agree(self._solved(treatments) if processes.is_main() else "")
        found = Candidates(self.folder / "candidates", list(treatments), digest)
        processes.check_shared(found.files(self.model.decoder, self.beside))
        return found

    @property
    def beside(self) -> tuple[Linear, ...]:
        """The matrices ``outside`` the blocks that are scored; a tied head is the embedding."""
        decoder = self.model.decoder
        return tuple(dict.fromkeys(decoder.outside_named[name] for name in self.outside))

    def _solved(self, treatments: Mapping[str, Treatment]) -> str:
        guidance = self._guidance({treatment.on_original_inputs.method for treatment in treatments.values()})
        parts = {"embedding", "norm", *(linear.kind for linear in self.beside)}
        with bar("candidates", len(self.model.decoder.linears) + len(self.beside), "modules") as advance:
            return solving.make(
                self.model.open_blocks([part for part in OUTSIDE if part in parts]),
                self.model.identity,
                self.model.decoder,
                treatments,
                self.calibration,
                self.options,
                self.folder / "candidates",
                advance,
                self.memory_gb,
                guidance,
                self.beside,
            ).digest

    def _guidance(self, methods: Collection[str]) -> Guidance | None:
        """Where candidates are guided: how much the calibration tokens count for each module."""
        if self.calibration is None or wanted(methods, self.options, self.calibration) is None:
            return None
        where = self.guidance or self.folder / "guidance"
        with bar("guidance", len(self.calibration.tokens), "samples") as advance:
            return guide(self.model, methods, self.calibration, self.options, where, advance, self.memory_gb)


def score(subject: Subject, spec: SensitivitySpec, candidates: Candidates | None = None) -> dict[str, Sensitivity]:
    """Write the tables of ``spec.scorer`` and, where its pass has what they need, of all other scorers.

    ``candidates``: where they are made already, of these formats and maybe others. Returns the tables of
    ``spec.scorer``, target -> table. Under a launcher processes share passages and cells; the main one writes.
    """
    scored = subject.scored(spec)
    found = _solved_and_scored(subject, spec, candidates, scored) if spec.solves else _contributed(subject, scored)
    tables = {
        name: {target: _table(subject, spec, name, target, scores) for target, scores in by_target.items()}
        for name, by_target in found.items()
    }
    if processes.is_main():
        for name, by_target in tables.items():
            for target, table in by_target.items():
                sensitivity.save(subject.folder / sensitivity.file_name(name, target), table)
    return tables[spec.scorer]


def _solved_and_scored(
    subject: Subject, spec: SensitivitySpec, candidates: Candidates | None, scored: Sequence[Scored]
) -> Found:
    candidates = candidates or subject.candidates(spec.treatments(subject.method))
    beside = [linear.address for linear in subject.beside]
    if spec.scorer == "measured":
        addresses = [*(module.address for module in subject.model.decoder.linears), *beside]
        return {"measured": _measured(subject, spec, candidates, scored, addresses)}
    found = _predicted(subject, spec, candidates, scored)
    if beside:
        known = _measured(subject, spec, candidates, scored, beside)
        for name in found.keys() & set(sensitivity.NATS):
            found[name] = {target: rows | known[target] for target, rows in found[name].items()}
    return found


def _contributed(subject: Subject, scored: Sequence[Scored]) -> Found:
    """What experts contribute, as the damage of dropping them.

    Raises UserError for a model without experts.
    """
    decoder = subject.model.decoder
    if not decoder.experts:
        raise UserError(f"sensitivity.scorer: reap scores routed experts, and {subject.model.id} has none")
    with bar("experts", decoder.layers, "blocks") as advance:
        found = reap.saliency(subject.model.open_blocks(("embedding", "norm")), scored, advance)
    every = {module.address: dict[str, float]() for module in decoder.linears}
    return {
        "reap": {
            target: every | {address: {str(DROPPED): damage} for address, damage in rows.items()}
            for target, rows in found.items()
        }
    }


def load_all(subject: Subject) -> list[Sensitivity]:
    """The tables in the subject's folder that were made from its calibration tokens."""
    found = []
    for path in sorted(subject.folder.glob("*.json")):
        table = sensitivity.load(path, subject.model.decoder, subject.model.identity)
        if table.calibration == subject.digest:
            found.append(table)
    return found


def _measured(
    subject: Subject,
    spec: SensitivitySpec,
    candidates: Candidates,
    scored: Sequence[Scored],
    addresses: Sequence[str],
) -> dict[str, dict[str, dict[str, float]]]:
    scores = {address: [name for name in candidates.names if may_be(address, name)] for address in addresses}
    wanted = [Cell(address, name, (address,)) for name in candidates.names for address in addresses]
    wanted = [cell for cell in wanted if cell.candidate in scores[cell.name]]
    loaded = subject.model.load()
    restarts = Restarts(loaded, [each.tokens for each in scored], spec.stride)
    with bar("measure", len(wanted), "cells") as advance:
        found = cells.measure(wanted, candidates, restarts, scored, subject.folder / "measured", advance)
    return {
        target: {
            address: {name: found[Cell(address, name, (address,))].mean("kl", target) for name in names}
            for address, names in scores.items()
        }
        for target in scored[0].weights
    }


def _predicted(subject: Subject, spec: SensitivitySpec, candidates: Candidates, scored: Sequence[Scored]) -> Found:
    addresses = [module.address for module in subject.model.decoder.linears]
    opened, known = subject.model.open_blocks(), None
    if spec.scorer in GRADIENT:
        rows, state = gradient_rows(spec, list(scored[0].weights)), gradient_state(spec)
        mine = processes.share([len(each.tokens) for each in scored], processes.rank(), processes.count())
        with bar("sensitivity", len(mine), "passages") as advance:
            evidence.gather(opened, candidates, scored, mine, rows, state, subject.folder / "sums", advance)
        processes.wait()
        processes.check_shared(evidence.files(subject.folder / "sums", len(scored)))
        known = evidence.load(subject.folder / "sums", len(scored), addresses, rows)
    errors = evidence.errors(opened, candidates, addresses, subject.options.updates)
    found: Found = {}
    for name in scorers.SCORERS:
        missing = (name in GRADIENT and known is None) or (name == "importance" and subject.importance is None)
        missing |= name == "updates" and errors.updates is None
        if (missing and name != spec.scorer) or (name == "first_order" and not _has_slopes(spec)):
            continue
        for target in scored[0].weights:
            importance = relative_importance(subject, target)
            if name == "importance" != spec.scorer and importance is None:
                continue
            asked = scorers.Question(known, errors, target, counted(scored, target), importance)
            found.setdefault(name, {})[target] = named(scorers.damage(name, asked), addresses, candidates.names)
    return found


def named(scores: Tensor, addresses: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """(M, C) scores as a table holds them."""
    rows = zip(addresses, scores.tolist(), strict=True)
    return {
        address: {name: damage for name, damage in zip(names, row, strict=True) if may_be(address, name)}
        for address, row in rows
    }


def may_be(address: str, choice: str) -> bool:
    """Whether a table has the damage of a module in a choice: that of a dropped expert stands at its last linear."""
    place = place_of(address)
    return choice != str(DROPPED) or (place.expert is not None and place.kind == "down")


def gradient_rows(spec: SensitivitySpec, targets: Sequence[str]) -> list[Row]:
    """The gradients of each target that the scorers of a sweep need."""
    rows = []
    for target in targets:
        if spec.gradients == "own":
            rows += [Row("fisher", target, draw) for draw in range(spec.draws)]
        if spec.at != "original":
            rows.append(Row("kl", target))
        if spec.gradients == "text" or (spec.at == "original" and spec.scorer == "first_order"):
            rows.append(Row("loss", target))
    return rows


def gradient_state(spec: SensitivitySpec) -> State:
    """Where gradients are taken."""
    way = {"original": 0.0, "path": 0.5, "compressed": 1.0}[spec.at]
    return State(None if spec.base is None else str(spec.base), way)


def _has_slopes(spec: SensitivitySpec) -> bool:
    """Whether a sweep has the gradients that first_order needs: the mean of random ones is no slope of anything."""
    return any(row.loss in ("kl", "loss") for row in gradient_rows(spec, [ALL]))


def importance_alone(subject: Subject, targets: Sequence[str], choices: Sequence[str]) -> list[Sensitivity]:
    """RI itself as tables, the same in every format: to judge it beside the scorer importance, which multiplies it with
    the weight error. No budget can use it. None of the tables where importance.json has no span of a target.
    """
    found = []
    for target in targets:
        shares = relative_importance(subject, target)
        if shares is not None:
            scores = {
                module.address: dict.fromkeys(choices, share)
                for module, share in zip(subject.model.decoder.linears, shares.tolist(), strict=True)
            }
            found.append(
                Sensitivity(
                    model=subject.model.id,
                    identity=subject.model.identity,
                    scorer=IMPORTANCE_ALONE,
                    target=target,
                    method=subject.method,
                    scores=scores,
                )
            )
    return found


def relative_importance(subject: Subject, target: str) -> Tensor | None:
    """RI (M,) of a behaviour, or for all tokens the mean of all; None where importance.json has no span of it."""
    if subject.importance is None:
        return None
    scores = artifact.scores_of(subject.importance)
    wanted = [target] if target in scores else list(scores) if target == ALL else []
    if not wanted:
        return None
    order = [module.address for module in subject.model.decoder.linears]
    if any(address not in scores[wanted[0]] for address in order):
        raise UserError("sensitivity: importance.json lacks modules of this model; was it made for another one?")
    shares = [artifact.relative([scores[name][address] for address in order]) for name in wanted]
    return torch.from_numpy(np.mean(shares, axis=0))


def _table(
    subject: Subject, spec: SensitivitySpec, scorer: Scorer | str, target: str, scores: dict[str, dict[str, float]]
) -> Sensitivity:
    gradients = scorer in GRADIENT and scorer != "output_error"
    return Sensitivity(
        model=subject.model.id,
        identity=subject.model.identity,
        scorer=str(scorer),
        target=target,
        method=spec.method or subject.method,
        calibration=subject.digest,
        settings={
            "samples": spec.samples,
            **({"at": spec.at, "base": None if spec.base is None else str(spec.base)} if gradients else {}),
            **({"gradients": spec.gradients, "draws": spec.draws, "seed": spec.seed} if gradients else {}),
            **({"stride": spec.stride} if scorer == "measured" else {}),
            "options": subject.options.model_dump(),
            "dtype": subject.model.dtype,
            "provenance": {**artifacts.provenance(), "git_revision": None},
        },
        scores=scores,
    )
