"""What the benchmarks of allocations and of whole pipelines share: model, tokens, scores, peers' formats, evaluation.

A job's outcome is a JSON file in the work folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from mixprec.core import environment

environment.settle()  # before torch is imported

import torch
from allocation import BUDGETS, CANDIDATES, PEERS, SCALES

from mixprec import pipeline
from mixprec.calibration import data
from mixprec.calibration.data import Calibration
from mixprec.calibration.spec import CalibrationSpec
from mixprec.contrib.peers import client
from mixprec.core import artifacts
from mixprec.evaluate import fidelity, metrics, passages
from mixprec.joint import run as joint
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.head import Head
from mixprec.models.load import LoadedModel
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.numerics.divergence import TokenFidelity
from mixprec.plan import bits, sensitivity
from mixprec.plan.budget import as_plan, budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.schema import Plan, load_plan, save_plan
from mixprec.plan.sensitivity import parse_choice
from mixprec.recipe import TracesSpec
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import SensitivitySpec

HERE = Path(__file__).resolve().parent
BEHAVIOUR = "backtracking"
#: Samples of 512 tokens that the bundled traces are enough for.
_TRACES = 16


class Bench:
    """The model, the calibration tokens, the scores and the evaluation that all jobs share."""

    #: Formats that our plans choose from.
    candidates: Sequence[str] = CANDIDATES

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
            artifacts.save_tensors(self.tokens, {"tokens": self._drawn().tokens})
        self.calibration = calibration(self.tokens)

    def _drawn(self, seed: int = 0, **traces: Any) -> Calibration:
        """The calibration samples; ``traces``: more of what is said of the traces, such as behaviours.

        Half of them are traces, but for what the bundled ones have no tokens for.
        """
        share = min(0.5, _TRACES / self.arguments.samples)
        text = str(Path(self.arguments.data) / "calibration" / "wikitext2_tokenized_valid.txt")
        sources = [{"text": text, "share": 1 - share}, {"traces": "bundled:attribution", "share": share, **traces}]
        words = {"sources": sources, "samples": self.arguments.samples, "tokens": 512, "seed": seed}
        return data.load(CalibrationSpec.model_validate(words), self.original.encoder, str, self.original.context)

    @cached_property
    def original(self) -> LoadedModel:
        return Model(self.model).load()

    def subject(self, folder: str, method: Any = "gptq", **more: Any) -> scoring.Subject:
        """What is scored, its files in a folder of the work."""
        return scoring.Subject(Model(self.model), method, self.calibration, self.work / folder, **more)

    # Jobs

    def job(self, name: str) -> None:
        """Do a job unless its outcome is there; jobs that others need come first."""
        done = self.work / f"{name}.json"
        if self.is_done(done):
            return
        print(f"== {name}", file=sys.stderr, flush=True)
        found = self.outcome(name)
        if found is not None:
            artifacts.write_json(done, found)

    def is_done(self, outcome: Path) -> bool:
        """Whether the outcome in this file is the one that is wanted."""
        return outcome.is_file()

    def outcome(self, name: str) -> dict[str, Any] | None:
        """Do the job; None where something of it is not there."""
        if name == "scores":
            return self.scores()
        return self.peer(name.removeprefix("allocate_"))

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
        return run_peer(job, self.work / f"allocate_{name}.log")

    # Scores, and plans made from them

    @property
    def score_keys(self) -> dict[str, Any]:
        """The keys of our scores: gradients where everything is in 3 bits, the regime that is shipped."""
        formats = list(self.candidates)
        return {"scorer": "fisher", "formats": formats, "at": "compressed", "base": "w3g64", "samples": self.few}

    @property
    def scored(self) -> SensitivitySpec:
        return SensitivitySpec.model_validate(self.score_keys)

    def exchanged(self, size: str, spec: dict[str, Any]) -> Plan:
        """Our plan of a size after exchange; ``additive`` has the one before it."""
        return load_plan(self._exchange(size, spec) / f"plan_{self.arguments.proposals}.json", self.inventory)

    def additive(self, size: str, spec: dict[str, Any]) -> Plan:
        """Our plan by the scores alone."""
        return load_plan(self._exchange(size, spec) / "start.json", self.inventory)

    def _exchange(self, size: str, spec: dict[str, Any]) -> Path:
        self.job("scores")
        folder = self.work / "exchange" / size
        done = folder / f"plan_{self.arguments.proposals}.json"
        if not done.is_file():
            subject = self.subject("sensitivity")
            more = {"samples": self.few, "stride": 4, "proposals": self.arguments.proposals}
            chosen = BudgetSpec.model_validate({**spec, "exchange": more})
            table = sensitivity.load(self.work / "sensitivity" / "fisher.json", self.inventory)
            start = budget_plan(chosen, self.inventory, self.model, "gptq", table)
            candidates, before = subject.candidates(self.scored.treatments("gptq")), time.process_time()
            save_plan(done, joint.improve(subject, self.scored, candidates, chosen, start, folder))
            # Of the rest alone where it was stopped.
            artifacts.write_json(self.work / f"exchange_{size}.json", {"cpu_seconds": time.process_time() - before})
        return folder

    def theirs(self, peer: str, budget: float, spec: BudgetSpec) -> Plan | None:
        """A peer's allocation as a plan; no more bytes than the budget. None where it is missing."""
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

    # Evaluation

    def reordered(self, draw: int) -> Path:
        """The calibration samples as they are (draw 0), or in another order."""
        path = self.work / f"order_{draw}.safetensors"
        if draw == 0:
            return self.tokens
        order = torch.randperm(len(self.calibration.tokens), generator=torch.Generator().manual_seed(draw))
        artifacts.save_tensors(path, {"tokens": self.calibration.tokens[order]})
        return path

    def weighted(self, draw: int, last: int, behaviours: Mapping[str, float]) -> Path:
        """The samples in a draw's order but the ``last`` ones, tokens in spans of ``behaviours`` weighted by these."""
        found = self._drawn(behaviours=dict(behaviours))
        assert torch.equal(found.tokens, self.calibration.tokens)
        assert found.weights is not None
        seen, order = self.calibration.tokens, artifacts.load_tensors(self.reordered(draw))[0]["tokens"]
        rows = torch.tensor([int((seen == row).all(1).nonzero()[0]) for row in order])[:-last]
        path = self.work / f"order_{draw}_weighted.safetensors"
        artifacts.save_tensors(path, {"tokens": seen[rows], "weights": found.weights[rows]})
        return path

    def split(self, draw: int, last: int) -> tuple[Path, Path]:
        """The samples in a draw's order: all but the ``last`` ones, and these."""
        order = artifacts.load_tensors(self.reordered(draw))[0]["tokens"]
        paths = self.work / f"order_{draw}_first.safetensors", self.work / f"order_{draw}_last.safetensors"
        for path, part in zip(paths, (order[:-last], order[-last:]), strict=True):
            artifacts.save_tensors(path, {"tokens": part.contiguous()})
        return paths

    @cached_property
    def traces(self) -> list[passages.Passage]:
        """The held-out traces."""
        found = pipeline.annotate_traces(TracesSpec(source="bundled:held_out"), "bundled:held_out")
        return passages.from_traces(found, self.original.encoder, self.original.context)[0]

    @cached_property
    def text(self) -> list[passages.Passage]:
        """Passages of WikiText-2 test."""
        wiki = str(Path(self.arguments.data) / "calibration" / "wikitext2_raw_test.txt")
        return passages.from_text(wiki, self.original.encoder, 512, self.arguments.passages)

    @property
    def everything(self) -> list[passages.Passage]:
        """All that is evaluated on, the held-out traces first."""
        return [*self.traces, *self.text]

    @cached_property
    def _reference(self) -> list[torch.Tensor]:
        """The original's final states, kept in the work folder: half of an evaluation."""
        passages, file = self.everything, self.work / "reference.safetensors"
        stamp = artifacts.fingerprint(Model(self.model).identity, *(each.tokens.tolist() for each in passages))
        if not artifacts.is_made(file, stamp):
            found = fidelity.hidden_states(self.original, passages, "original")
            artifacts.save_tensors(file, {f"{n:05}": states for n, states in enumerate(found)}, {"stamp": stamp})
        states = artifacts.load_tensors(file)[0]
        return [states[name] for name in sorted(states)]

    def compared(self, checkpoint: Path) -> list[TokenFidelity]:
        """A checkpoint beside the original, for each passage of ``everything``."""
        loaded, head = Model(checkpoint).load(), Head.of(self.original.model)
        hidden = fidelity.hidden_states(loaded, self.everything, "evaluate")
        return fidelity.compare(self.everything, hidden, Head.of(loaded.model), self._reference, head)

    def evaluate(self, checkpoint: Path) -> dict[str, Any]:
        """KL and perplexity on the held-out traces and WikiText test, and per behaviour."""
        return self.summary(self.compared(checkpoint))

    def summary(self, found: Sequence[TokenFidelity]) -> dict[str, Any]:
        """The same of a comparison passage by passage, without those that are no held-out text."""
        traces, end = self.traces, len(self.traces) + len(self.text)
        on = {"traces": found[: len(traces)], "wikitext": found[len(traces) : end], "both": found[:end]}
        return {
            "evaluation": {name: metrics.summarise(results) for name, results in on.items()},
            "behaviours": metrics.per_behaviour(traces, on["traces"]),
            "kl_by_passage": by_passage(on["both"]),
            "behaviour_by_passage": by_passage(
                [metrics.within(*pair, BEHAVIOUR) for pair in zip(traces, on["traces"], strict=True)]
            ),
        }


def calibration(tokens: Path) -> Calibration:
    """The tokens of all jobs, from their file."""
    found = artifacts.load_tensors(tokens)[0]
    parts = [found[name].tolist() for name in ("tokens", "weights") if name in found]
    return Calibration(found["tokens"], found.get("weights"), {}, artifacts.fingerprint(*parts))


def by_passage(results: Sequence[TokenFidelity]) -> list[dict[str, float]]:
    """What paired comparisons need."""
    return [{"tokens": len(each.kl), "kl_sum": float(each.kl.sum())} for each in results]


def digest(plan: Plan) -> str:
    """The same for plans that do the same."""
    return artifacts.fingerprint(plan.model_dump(mode="json", exclude={"modules": {"__all__": {"why"}}}))[:16]


def run_peer(job: dict[str, Any], log: Path) -> dict[str, Any] | None:
    """What a peer says of a job; None where its environment is not there, or it fails."""
    try:
        return client.run_peer(job, log=log)
    except (client.PeerMissing, client.PeerFailed) as problem:
        print(f"{job['peer']}: not measured: {problem}", file=sys.stderr)
        return None


def once(script: str, job: dict[str, Any]) -> dict[str, Any]:
    """A script beside this file with a JSON job, in a process of its own; the figures on its last line."""
    command = [sys.executable, str(HERE / script), json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{script} failed")
    return dict(json.loads(done.stdout.splitlines()[-1]))
