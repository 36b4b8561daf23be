"""The jobs of allocation.py: scores, plans, compression and evaluation, each kept in the work folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Any

from allocation import CANDIDATES, PEERS, SPARSITIES
from bench import BEHAVIOUR, Bench, digest, once

from mixprec import pipeline
from mixprec.compress import spectra
from mixprec.core import artifacts
from mixprec.importance import artifact
from mixprec.importance.attribute import attribute
from mixprec.models.model import Model
from mixprec.plan import bits, sensitivity
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, save_plan
from mixprec.recipe import TracesSpec
from mixprec.sensitivity import ablation
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import AblationSpec, SensitivitySpec


class Allocations(Bench):
    """Plans of many allocators, compressed alike."""

    def outcome(self, name: str) -> dict[str, Any] | None:
        """Do a job: what plans are made from, or a plan from its making to its figures."""
        if name == "ablation":
            return self.ablation()
        return self.planned(name) if "@" in name or name.startswith("sparse") else super().outcome(name)

    def outcomes(self) -> dict[str, Any]:
        """Of all jobs that are done; a plan's with its draws, whoever asked for them, and what our scores predict."""
        found = {path.stem: artifacts.read_json(path) for path in sorted(self.work.glob("*.json"))}
        table = self.work / "sensitivity" / "fisher.json"
        scores = sensitivity.load(table, self.inventory).scores if table.is_file() else None
        for name in [name for name in found if "@" in name and "#" not in name]:
            plan = self.plan(name)
            if plan is not None:
                for path in (self.work / "plans").glob(f"{digest(plan)}#*.json"):
                    found[f"{name}#{path.stem.partition('#')[2]}"] = artifacts.read_json(path)
                found[name]["predicted_kl"] = None if scores is None else predicted(plan, scores)
        return found

    # What plans are made from

    def ablation(self) -> dict[str, Any]:
        """Every module in 3 bits, one at a time, on the held-out traces, and the tables judged by it."""
        self.job("scores")
        subject = self.subject("sensitivity", importance=self.importance())
        scoring.score(subject, self.scored)  # with the importance's table; nothing else is computed again
        spec = AblationSpec.model_validate({"each": "*_*", "formats": ["w3g64"], "stride": 4})
        candidates = subject.candidates(self.scored.treatments("gptq"))
        on_traces = [each._replace(tokens=each.tokens[:256]) for each in self.traces]
        return ablation.ablate(
            subject, spec, candidates, on_traces, scoring.load_all(subject), self.work / "ablation_cells"
        )

    def importance(self) -> dict[str, Any]:
        """The paper's, on the attribution traces."""
        path = self.work / "importance" / "importance.json"
        if not path.is_file():
            spec = TracesSpec(source="bundled:attribution")
            found = pipeline.annotate_traces(spec, spec.source)
            identity = Model(self.model).identity
            attribute(self.original, found, path.parent, presets=("paper",), identity=identity, resamples=0)
        return artifact.load(path)

    # Plans

    def plan(self, name: str) -> Plan | None:
        """The plan of a job; None where a peer's allocation is missing."""
        how, _, budget = name.partition("@")
        if how.startswith("sparse"):
            return self.sparse(how)
        paper = build_plan(
            PlanSpec.model_validate({"default": "w3g64", "rules": [{"match": "last_mlp", "format": "keep"}]}),
            self.inventory, self.model, "gptq",
        )  # fmt: skip
        if how == "protection":
            return paper
        of_their_own = {"paper": paper, "q3_k_m": self.mixture()}
        if budget in of_their_own:
            size = bits.account(of_their_own[budget], self.inventory).effective_bits
        else:
            size = float(budget)
        spec: dict[str, Any] = {"effective_bits": size, "candidates": list(CANDIDATES)}
        if how in PEERS:
            return self.theirs(how, float(budget), BudgetSpec.model_validate(spec))
        if how in ("ours", "additive"):
            return self.exchanged(budget, spec) if how == "ours" else self.additive(budget, spec)
        if how in (BEHAVIOUR, "everywhere"):
            return self.targeted(how, spec)
        if how == "importance":
            spec = {"budget": {**spec, "scores": "importance"}}
            scores = artifact.scores_of(self.importance())
            return build_plan(PlanSpec.model_validate(spec), self.inventory, self.model, "gptq", scores)
        if how == "llama_cpp" and budget == "q3_k_m":
            return self.mixture()
        kinds = {"last": "last_layers", "uniform": "uniform", "inverse": "inverse", "llama_cpp": "llama_cpp"}
        spec |= {"allocation": kinds.get(how, "random"), "seed": int(how[-1]) if how.startswith("random") else 0}
        table = None
        if how == "inverse":
            self.job("scores")
            table = sensitivity.load(self.work / "sensitivity" / "fisher.json", self.inventory)
        return budget_plan(BudgetSpec.model_validate(spec), self.inventory, self.model, "gptq", table)

    def mixture(self) -> Plan:
        """llama.cpp's Q3_K_M, its bits in the candidates' formats: the largest mixture within 3.75 bits."""
        spec = {"effective_bits": 3.75, "candidates": list(CANDIDATES), "allocation": "llama_cpp"}
        return budget_plan(BudgetSpec.model_validate(spec), self.inventory, self.model, "gptq")

    def targeted(self, how: str, spec: dict[str, Any]) -> Plan:
        """A plan for one behaviour's spans, or for all tokens, by scores on the same traces."""
        self.job("scores")
        folder = self.work / "behaviour"
        traces = pipeline.annotate_traces(TracesSpec(source="bundled:attribution"), "bundled:attribution")
        subject = self.subject("behaviour", traces=traces)
        if not (folder / f"fisher_{BEHAVIOUR}.json").is_file():
            candidates = self.subject("sensitivity").candidates(self.scored.treatments("gptq"))
            # All traces: of 3,200 tokens of eight of them only 240 lie in such spans, too few for 1,260 scores.
            wanted = {**self.score_keys, "behaviours": [BEHAVIOUR], "samples": len(traces)}
            scoring.score(subject, SensitivitySpec.model_validate(wanted), candidates)
        name = f"fisher_{BEHAVIOUR}.json" if how == BEHAVIOUR else "fisher.json"
        table = sensitivity.load(folder / name, self.inventory)
        return budget_plan(BudgetSpec.model_validate(spec), self.inventory, self.model, "gptq", table)

    def sparse(self, how: str) -> Plan:
        """Half of the weights zero: everywhere alike, by AlphaPruning, or by the budget with SparseGPT's own errors."""
        if how != "sparse_ours":
            sparsity: Any = {"alphapruning": 0.5} if how == "sparse_alphapruning" else 0.5
            alphas = spectra.alphas(Model(self.model)) if isinstance(sparsity, dict) else None
            spec = PlanSpec.model_validate({"default": "keep", "sparsity": sparsity})
            return build_plan(spec, self.inventory, self.model, "sparsegpt", alphas=alphas)
        subject = self.subject("sparse", "sparsegpt")
        wanted = self.score_keys | {"formats": list(SPARSITIES), "base": "0.5"}
        table = scoring.score(subject, SensitivitySpec.model_validate(wanted))["all"]
        budget = BudgetSpec.model_validate({"sparsity": 0.5, "candidates": list(SPARSITIES)})
        return budget_plan(budget, self.inventory, self.model, "sparsegpt", table)

    # From a plan to its figures

    def planned(self, name: str) -> dict[str, Any] | None:
        """Compress and evaluate a job's plan, with the order of samples that its draw has; equal ones once."""
        name, _, draw = name.partition("#")
        plan = self.plan(name)
        if plan is None:
            return None
        done = self.work / "plans" / f"{digest(plan)}{draw and '#'}{draw}.json"
        if not done.is_file():
            save_plan(self.work / "plans" / f"{name}.plan.json", plan)
            checkpoint = self.work / f"checkpoint_{os.getpid()}"  # other processes may do other jobs
            shutil.rmtree(checkpoint, ignore_errors=True)
            tokens = self.reordered(int(draw or 0))
            job = {"plan": str(self.work / "plans" / f"{name}.plan.json"), "tokens": str(tokens),
                   "out": str(checkpoint), "model": self.model, "threads": self.arguments.threads}  # fmt: skip
            row = once("compress_once.py", job) | self.evaluate(checkpoint)
            row["effective_bits"] = bits.account(plan, self.inventory).effective_bits
            artifacts.write_json(done, row)
            shutil.rmtree(checkpoint)
        return dict(artifacts.read_json(done))


def predicted(plan: Plan, scores: Mapping[str, Mapping[str, float]]) -> float:
    """The sum of the modules' predicted damage, in nats; what is kept has none."""
    return sum(scores[address][str(each.format)] for address, each in plan.treatments.items() if each.changes)
