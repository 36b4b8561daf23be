"""The jobs of pareto.py: every pipeline from the original model to its row."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import machine
import pareto_rows
from allocation import PEERS
from bench import HERE, Bench, by_passage
from pareto_made import MAKERS, PACKED, by_peer
from pareto_pipelines import CANDIDATES, OURS, PIPELINES, UNIFORM, WHOLE, Job, Pipeline
from pareto_rows import Row
from pipeline_once import OPTIONS

from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress import RULES as SOLVING
from mixprec.compress.options import SolveOptions
from mixprec.contrib.peers import RULES as ASKING
from mixprec.core import artifacts
from mixprec.evaluate import RULES as EVALUATING
from mixprec.evaluate.passages import Passage
from mixprec.joint import RULES as EXCHANGING
from mixprec.models.config import load_config
from mixprec.models.model import Model
from mixprec.plan import sensitivity
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan
from mixprec.sensitivity import RULES as SCORING
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import SensitivitySpec
from mixprec.tune import RULES as TUNING

#: Calibration samples that KL is measured on too.
_SEEN = 8


class Pipelines(Bench):
    """Whole pipelines: ours in processes of their own, peers in their environments."""

    candidates = CANDIDATES

    def outcome(self, name: str) -> dict[str, Any] | None:
        """A row, or what rows are made from; None where a peer is missing or fails."""
        if name == "whole_scores":
            return self.whole_scores()
        if "@" not in name:
            return super().outcome(name)
        described = self.described(name)
        checkpoint, card = self.work / "made" / name, self.work / "made" / f"{name}.json"
        # What took hours is there still where an evaluation was stopped.
        known = artifacts.read_json(card) if card.is_file() and checkpoint.is_dir() else {}
        if known.get("fingerprint") != described["fingerprint"]:
            shutil.rmtree(checkpoint, ignore_errors=True)
            job = Job.parse(name)
            made = MAKERS.get(job.pipeline.who, by_peer)(self, job, checkpoint)
            if made is None:
                return None
            known = described | made
            artifacts.write_json(card, known)
        row = known | self.evaluate(checkpoint)
        shutil.rmtree(checkpoint)
        card.unlink()
        return row

    def is_done(self, outcome: Path) -> bool:
        if "@" not in outcome.stem:
            return super().is_done(outcome)
        return outcome.stem in self.rows([outcome.stem])

    # Rows

    def rows(self, names: Iterable[str]) -> dict[str, Row]:
        """Of these jobs, those that are done: in the work folder, or in the file of rows."""
        wanted = {name: self.described(name)["fingerprint"] for name in names}
        found = [artifacts.read_json(path) for path in sorted(self.work.glob("*@*.json"))]
        return pareto_rows.good([*pareto_rows.load(Path(self.arguments.rows)), *found], wanted)

    def keep(self) -> None:
        """Put the rows of the work folder into the file of rows."""
        file = Path(self.arguments.rows)
        made = [artifacts.read_json(path) for path in sorted(self.work.glob("*@*.json"))]
        pareto_rows.save(file, pareto_rows.merged(pareto_rows.load(file), made))

    def described(self, name: str) -> Row:
        """What a row says of its job before it is done."""
        job = Job.parse(name)
        one = job.pipeline
        settings = {"who": one.who, "plan": one.plan, **one.settings}
        parts = [job.name, job.size, job.draw, settings, made_by(one), self._identity]
        return {
            "job": name,
            "fingerprint": artifacts.fingerprint(*parts)[:16],
            "settings": settings,
            "model": Path(self.model).name,
            "samples": self.arguments.samples,
            "passages": self.arguments.passages,
            "threads": self.arguments.threads,
            "machine": self._machine,
        }

    @cached_property
    def _identity(self) -> list[Any]:
        """What all rows depend on."""
        return [Model(self.model).identity, self.calibration.digest, self.arguments.passages, EVALUATING]

    @cached_property
    def _machine(self) -> str:
        facts = machine.facts()
        # One name stands for several processors: with and without instructions for bfloat16 times differ fourfold.
        return f"{facts['processor']}, {facts['cores']} cores, quickest in {facts['quickest_dtype']}"

    # Plans

    def plan(self, job: Job) -> Plan | None:
        """Formats of all modules; None where a peer's allocation is missing."""
        kind, method = job.pipeline.plan, job.pipeline.settings["method"]
        method = method if job.pipeline.who == OURS else "rtn"
        if kind == "uniform":
            spec = PlanSpec.model_validate({"default": UNIFORM[job.size], "method": method})
            return build_plan(spec, self.inventory, self.model, method)
        if kind in ("whole", "gguf"):
            return self.within(self.packed_bytes(job.size) if kind == "whole" else self.mixture_bytes(job.size))
        spec = {"effective_bits": float(job.size), "candidates": list(self.candidates)}
        if kind in PEERS:
            found = self.theirs(kind, float(job.size), BudgetSpec.model_validate(spec))
            return found and found.model_copy(update={"method": method})
        made = self.exchanged(job.size, spec) if kind == "exchanged" else self.additive(job.size, spec)
        return made.model_copy(update={"method": method})

    def packed_bytes(self, size: str) -> int:
        """Of a packed file of ``size`` with a 16-bit embedding."""
        alone = build_plan(PlanSpec.model_validate({"default": UNIFORM[size]}), self.inventory, self.model, "gptq")
        return checkpoint_format(PACKED).bytes(alone, self.inventory, load_config(self.model))

    def mixture_bytes(self, mixture: str) -> int | None:
        """Of the file that llama.cpp's quantizer makes of one of its mixtures; None where it is not there."""
        self.job(name := f"llamacpp@{mixture}")
        row = self.rows([name]).get(name)
        return row and row["file_bytes"]

    def within(self, limit: int | None) -> Plan | None:
        """So many bytes of a GGUF file spent on blocks and embedding; None where it is not known how many."""
        if limit is None:
            return None
        self.job("whole_scores")
        table = sensitivity.load(self.work / "whole" / "fisher.json", self.inventory)
        config = load_config(self.model)
        spec = BudgetSpec.model_validate(
            {"file_bytes": limit, "candidates": [*WHOLE, "keep"], "outside": ["embedding"]}
        )
        return budget_plan(
            spec, self.inventory, self.model, "gptq", table,
            lambda plan: checkpoint_format("gguf").bytes(plan, self.inventory, config),
        )  # fmt: skip

    def whole_scores(self) -> dict[str, float]:
        """Scores of the blocks and the embedding in formats that GGUF has types for."""
        before = time.process_time()
        keys = {"scorer": "fisher", "formats": list(WHOLE), "samples": self.few, "outside": ["embedding"]}
        scoring.score(self.subject("whole", outside=["embedding"]), SensitivitySpec.model_validate(keys))
        return {"cpu_seconds": time.process_time() - before}

    # Evaluation

    @cached_property
    def seen(self) -> list[Passage]:
        """Calibration samples, the same whatever the draw."""
        return [Passage(tokens, ()) for tokens in self.calibration.tokens[:_SEEN]]

    @property
    def everything(self) -> list[Passage]:
        return [*super().everything, *self.seen]

    def evaluate(self, checkpoint: Path) -> Row:
        """KL by passage, on the text that figures are read from and on calibration samples."""
        found = self.compared(checkpoint)
        held_out = self.summary(found)
        seen = by_passage(found[-len(self.seen) :])
        return held_out | {"kl_calibration": sum(p["kl_sum"] for p in seen) / sum(p["tokens"] for p in seen)}


def made_by(pipeline: Pipeline) -> list[Any]:
    """What decides, besides a pipeline's settings, what comes out: rules and defaults of ours, the pins of a peer's."""
    if pipeline.who == OURS:
        planning: list[Any] = [] if pipeline.plan == "uniform" else [SCORING, EXCHANGING]
        planning += {
            "additive": [CANDIDATES],
            "exchanged": [CANDIDATES],
            "whole": [WHOLE],
            "gguf": [WHOLE, made_by(PIPELINES["llamacpp"])],
        }.get(pipeline.plan, [])
        tuning = [TUNING] if {"tune", "tune_blocks"} & pipeline.settings.keys() else []
        known = {name: kind for name, kind in OPTIONS.items() if name in pipeline.settings}
        chosen = [kind.model_validate(pipeline.settings[name]).model_dump() for name, kind in known.items()]
        return [SOLVING, *planning, *tuning, SolveOptions().model_dump(), *chosen]
    pins = sorted((HERE / "peers" / "pins").glob(f"{pipeline.who}.*txt"))
    return [ASKING, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in pins)]
