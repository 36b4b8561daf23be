"""The jobs of allocation.py: scores, plans, compression and evaluation, each kept in the work folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mixprec.core import environment

environment.settle()  # before torch is imported

import torch
from allocation import BUDGETS, CANDIDATES, PEERS, SCALES, SPARSITIES

from mixprec import pipeline
from mixprec.calibration import data
from mixprec.calibration.data import Calibration
from mixprec.calibration.spec import CalibrationSpec
from mixprec.compress import spectra
from mixprec.contrib.peers import client
from mixprec.core import artifacts
from mixprec.evaluate import fidelity, metrics, passages
from mixprec.importance import artifact
from mixprec.importance.attribute import attribute
from mixprec.joint import run as joint
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.decoder import decoder_of
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.model import Model
from mixprec.numerics.divergence import TokenFidelity
from mixprec.plan import bits, sensitivity
from mixprec.plan.budget import as_plan, budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, load_plan, save_plan
from mixprec.plan.sensitivity import parse_choice
from mixprec.recipe import TracesSpec
from mixprec.sensitivity import ablation
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import AblationSpec, SensitivitySpec

HERE = Path(__file__).resolve().parent
#: Scores of our plans: gradients where everything is in 3 bits, the regime that is shipped.
SCORES = {"scorer": "fisher", "formats": list(CANDIDATES), "at": "compressed", "base": "w3g64"}
BEHAVIOUR = "backtracking"


def calibration(tokens: Path) -> Calibration:
    """The tokens of all jobs, from their file."""
    found = artifacts.load_tensors(tokens)[0]["tokens"]
    return Calibration(found, None, {}, artifacts.fingerprint(found.tolist()))


class Bench:
    """The model, the calibration tokens and the evaluation that all jobs share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.set_num_threads(arguments.threads)
        self.arguments = arguments
        count = arguments.samples
        self.model = arguments.model
        self.work = Path(arguments.work) / f"{Path(self.model).name}_{count}x512"
        #: Samples that are scored, from the first one on, and that exchanges are measured on, behind them.
        self.few = min(8, count // 2)
        self.work.mkdir(parents=True, exist_ok=True)
        self.inventory = decoder_of(load_config(self.model))
        self.tokens = self.work / "calibration.safetensors"
        if not self.tokens.is_file():
            text = str(Path(arguments.data) / "calibration" / "wikitext2_tokenized_valid.txt")
            sources = [{"text": text, "share": 0.5}, {"traces": "bundled:attribution", "share": 0.5}]
            spec = CalibrationSpec.model_validate({"sources": sources, "samples": count, "tokens": 512})
            drawn = data.load(spec, self.original.encoder, str, self.original.context)
            artifacts.save_tensors(self.tokens, {"tokens": drawn.tokens})
        self.calibration = calibration(self.tokens)
        self._reference: list[Any] | None = None

    @cached_property
    def original(self) -> LoadedModel:
        return Model(self.model).load()

    def subject(self, folder: str, method: Any = "gptq", **more: Any) -> scoring.Subject:
        """What is scored, its files in a folder of the work."""
        return scoring.Subject(Model(self.model), method, self.calibration, self.work / folder, **more)

    def job(self, name: str) -> None:
        """Do a job unless its outcome is there; jobs that others need come first."""
        done = self.work / f"{name}.json"
        if done.is_file():
            return
        print(f"== {name}", file=sys.stderr, flush=True)
        found = self._plain(name) if name in self._kinds() else self.planned(name)
        if found is not None:
            artifacts.write_json(done, found)

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

    def _kinds(self) -> dict[str, Callable[[], dict[str, Any] | None]]:
        found: dict[str, Callable[[], dict[str, Any] | None]] = {"scores": self.scores, "ablation": self.ablation}
        return found | {f"allocate_{peer}": lambda peer=peer: self.peer(peer) for peer in PEERS}  # type: ignore[misc]

    def _plain(self, name: str) -> dict[str, Any] | None:
        return self._kinds()[name]()

    # What plans are made from

    def scores(self) -> dict[str, Any]:
        """Candidates and tables, in a process of their own."""
        job = {"tokens": str(self.tokens), "folder": str(self.work / "sensitivity"), "scores": self.score_keys,
               "model": self.model, "threads": self.arguments.threads}  # fmt: skip
        return once("score_once.py", job)

    def peer(self, name: str) -> dict[str, Any] | None:
        """A peer's allocator on all budgets; None where its environment is not there, or it fails."""
        grid = [{"bits": int(text[1]), "group_size": 64, "symmetric": True} for text in CANDIDATES]
        job = {"peer": PEERS[name], "method": "allocate", "model": locate.resolve(self.model),
               "out": str(self.work / "none"), "calibration": str(self.tokens), "threads": self.arguments.threads,
               "budgets": [float(budget) - SCALES for budget in BUDGETS], "candidates": grid}  # fmt: skip
        try:
            return client.run_peer(job, log=self.work / f"allocate_{name}.log")
        except (client.PeerMissing, client.PeerFailed) as problem:
            print(f"{name}: not measured: {problem}", file=sys.stderr)
            return None

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

    @property
    def score_keys(self) -> dict[str, Any]:
        """The keys of our scores."""
        return SCORES | {"samples": self.few}

    @property
    def scored(self) -> SensitivitySpec:
        return SensitivitySpec.model_validate(self.score_keys)

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
            return self.exchanged(how, budget, spec)
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

    def exchanged(self, how: str, budget: str, spec: dict[str, Any]) -> Plan:
        """Our plan after exchange, or the one before it."""
        self.job("scores")
        folder = self.work / "exchange" / budget
        done = folder / f"plan_{self.arguments.proposals}.json"
        if not done.is_file():
            subject = self.subject("sensitivity")
            more = {"samples": self.few, "stride": 4, "proposals": self.arguments.proposals}
            chosen = BudgetSpec.model_validate({**spec, "exchange": more})
            table = sensitivity.load(self.work / "sensitivity" / "fisher.json", self.inventory)
            start = budget_plan(chosen, self.inventory, self.model, "gptq", table)
            candidates = subject.candidates(self.scored.treatments("gptq"))
            save_plan(done, joint.improve(subject, self.scored, candidates, chosen, start, folder))
        return load_plan(done if how == "ours" else folder / "start.json", self.inventory)

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

    def theirs(self, peer: str, budget: float, spec: BudgetSpec) -> Plan | None:
        """A peer's allocation as a plan; no more bytes than the budget."""
        self.job(f"allocate_{peer}")
        done = self.work / f"allocate_{peer}.json"
        if not done.is_file():
            return None
        wanted = artifacts.read_json(done)["plans"][str(budget - SCALES)]
        choices = {m.address: parse_choice(f"w{wanted[m.address]}g64") for m in self.inventory.linears}
        plan = as_plan(choices, spec, self.inventory, self.model, "gptq", why=peer)
        found = bits.account(plan, self.inventory).effective_bits
        if found > budget + 1e-9:
            raise SystemExit(f"{peer}: its plan for {budget} bits has {found}")
        return plan

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

    def reordered(self, draw: int) -> Path:
        """The calibration samples as they are (draw 0), or in another order."""
        path = self.work / f"order_{draw}.safetensors"
        if draw == 0:
            return self.tokens
        order = torch.randperm(len(self.calibration.tokens), generator=torch.Generator().manual_seed(draw))
        artifacts.save_tensors(path, {"tokens": self.calibration.tokens[order]})
        return path

    @cached_property
    def traces(self) -> list[passages.Passage]:
        """The held-out traces."""
        found = pipeline.annotate_traces(TracesSpec(source="bundled:held_out"), "bundled:held_out")
        return passages.from_traces(found, self.original.encoder, self.original.context)[0]

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """KL and perplexity on the held-out traces and WikiText test, and per behaviour."""
        wiki = str(Path(self.arguments.data) / "calibration" / "wikitext2_raw_test.txt")
        text = passages.from_text(wiki, self.original.encoder, 512, self.arguments.passages)
        everything, head = [*self.traces, *text], Head.of(self.original.model)
        if self._reference is None:
            self._reference = list(fidelity.hidden_states(self.original, everything, "original"))
        loaded = Model(checkpoint).load()
        hidden = fidelity.hidden_states(loaded, everything, "evaluate")
        found = fidelity.compare(everything, hidden, Head.of(loaded.model), self._reference, head)
        on = {"traces": found[: len(self.traces)], "wikitext": found[len(self.traces) :], "both": found}
        return {
            "evaluation": {name: metrics.summarise(results) for name, results in on.items()},
            "behaviours": metrics.per_behaviour(self.traces, on["traces"]),
            "kl_by_passage": by_passage(found),
            "behaviour_by_passage": by_passage(
                [metrics.within(*pair, BEHAVIOUR) for pair in zip(self.traces, on["traces"], strict=True)]
            ),
        }


def digest(plan: Plan) -> str:
    """The same for plans that do the same."""
    return artifacts.fingerprint(plan.model_dump(mode="json", exclude={"modules": {"__all__": {"why"}}}))[:16]


def predicted(plan: Plan, scores: Mapping[str, Mapping[str, float]]) -> float:
    """The sum of the modules' predicted damage, in nats; what is kept has none."""
    return sum(scores[address][str(each.format)] for address, each in plan.treatments.items() if each.changes)


def by_passage(results: Sequence[TokenFidelity]) -> list[dict[str, float]]:
    """What paired comparisons need."""
    return [{"tokens": len(each.kl), "kl_sum": float(each.kl.sum())} for each in results]


def once(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """A script beside this file with a JSON job, in a process of its own; the figures on its last line."""
    command = [sys.executable, str(HERE / script), json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed")
    return dict(json.loads(done.stdout.splitlines()[-1]))
