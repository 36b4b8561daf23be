"""Guided solves beside plain ones: SmolLM2-135M in w3g64 by GPTQ and GPTAQ, Hessians weighted by gradients or not.

python benchmarks/guided.py [--draws 3] [--samples 32] [--only JOB …] [--data FOLDER] [--work FOLDER] --json OUT

All compress on the same tokens, half WikiText-2 validation, half bundled attribution traces, and are evaluated on the
held-out traces and passages of WikiText-2 test; no setting was chosen on these. A draw has the samples in another order
and other random losses. Jobs are METHOD-GUIDANCE: gptq or gptaq; plain, or loss and groups of outputs that have a
Hessian each (fisher1, fisher4, fisher16, loss1), raw where tokens' weights are as they are (fisher1raw; loss4raw is
GuidedQuant as published), or fisher1b, whose loss counts predictions in spans of backtracking four times. Outcomes stay
in the work folder: what was stopped goes on.

Keys of OUT (null: not measured)
    kl              mean KL to the original of each job over its draws, nats per token
    kl_draws        of each draw
    guided_gain     KL of each guided job over that of its method's plain one: below 1 guidance pays
    guided_interval    95% intervals of these, over passages and draws
    guided_cpu      CPU seconds of each guided job over those of its method's plain one
    behaviour_gain     fisher1b over fisher1: KL in spans of backtracking on the held-out traces
    behaviour_interval    95% intervals of these
    behaviour_overall     fisher1b over fisher1: KL on everything
    draws           of each job
    samples         calibration samples of 512 tokens
    threads         of every measurement
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bench
import machine
import torch
from intervals import divided, interval, ratio

from mixprec.calibration import data
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core import artifacts
from mixprec.models.locate import BUNDLED

ROOT = Path(__file__).resolve().parents[1]
METHODS = ("gptq", "gptaq")
KINDS = ("plain", "fisher1", "fisher4", "fisher16", "fisher1raw", "loss1", "loss4raw", "fisher1b")
JOBS = tuple(f"{method}-{kind}" for method in METHODS for kind in KINDS)
#: What a prediction in a span of the behaviour counts in jobs that weigh it.
FACTOR = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS, metavar="JOB")
    parser.add_argument("--passages", type=int, default=12, help="of WikiText-2 test")
    parser.add_argument("--model", default=BUNDLED)
    parser.add_argument("--threads", type=int, default=1)
    data_folder = Path(os.environ.get("MIXPREC_DATA") or ROOT.parent / "shared/data")
    parser.add_argument("--data", type=Path, default=data_folder)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mixprec-guided"))
    parser.add_argument("--json", required=True)
    arguments = parser.parse_args()
    jobs = Guided(arguments)
    for draw in range(arguments.draws):
        for name in arguments.only:
            jobs.job(f"{name}#{draw}")
    figures = told(jobs.outcomes())
    figures |= {"draws": arguments.draws, "samples": arguments.samples, "threads": arguments.threads}
    machine.write(arguments.json, __file__, figures, [arguments.data, arguments.work])


class Guided(bench.Bench):
    """One compression and its evaluation for each job and draw."""

    def outcome(self, name: str) -> dict[str, Any]:
        what, _, draw = name.partition("#")
        method, _, kind = what.partition("-")
        checkpoint = self.work / f"checkpoint_{os.getpid()}"  # other processes may do other jobs
        shutil.rmtree(checkpoint, ignore_errors=True)
        tokens = self.weighted(int(draw)) if kind.endswith("b") else self.reordered(int(draw))
        job = {"method": method, "format": "w3g64", "sparsity": None, "tokens": str(tokens), "out": str(checkpoint),
               "model": self.model, "threads": self.arguments.threads,
               "options": {} if kind == "plain" else {"guided": guidance(kind, int(draw))}}  # fmt: skip
        row = bench.once("compress_once.py", job) | self.evaluate(checkpoint)
        shutil.rmtree(checkpoint)
        return row

    def weighted(self, draw: int) -> Path:
        """The samples of a draw, with weights of their tokens."""
        path = self.work / f"weighted_{draw}.safetensors"
        if not path.is_file():
            text = str(Path(self.arguments.data) / "calibration" / "wikitext2_tokenized_valid.txt")
            traces = {"traces": "bundled:attribution", "share": 0.5, "behaviours": {bench.BEHAVIOUR: FACTOR}}
            words = {
                "sources": [{"text": text, "share": 0.5}, traces],
                "samples": self.arguments.samples,
                "tokens": 512,
            }
            drawn = data.load(CalibrationSpec.model_validate(words), self.original.encoder, str, self.original.context)
            assert torch.equal(drawn.tokens, self.calibration.tokens)
            assert drawn.weights is not None
            rows = {
                tuple(tokens.tolist()): weights for tokens, weights in zip(drawn.tokens, drawn.weights, strict=True)
            }
            tokens = artifacts.load_tensors(self.reordered(draw))[0]["tokens"]
            weights = torch.stack([rows[tuple(each.tolist())] for each in tokens])
            artifacts.save_tensors(path, {"tokens": tokens, "weights": weights})
        return path

    def outcomes(self) -> dict[str, list[dict[str, Any]]]:
        """Of each job its draws that are done."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name in JOBS:
            paths = sorted(self.work.glob(f"{name}#*.json"))
            if paths:
                found[name] = [artifacts.read_object(path) for path in paths]
        return found


def guidance(kind: str, draw: int) -> dict[str, Any]:
    """``compress.guided`` of a job."""
    found = re.fullmatch(r"(fisher|loss)(\d+)(raw)?b?", kind)
    assert found is not None
    loss, groups, raw = found.groups()
    return {"loss": loss, "groups": int(groups), "seed": 1000 * draw, **({"power": 1.0} if raw else {})}


def told(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures."""
    kl = {name: [mean(row["kl_by_passage"]) for row in draws] for name, draws in rows.items()}
    means = {name: sum(each) / len(each) for name, each in kl.items()}
    plain = {name: f"{name.partition('-')[0]}-plain" for name in rows if not name.endswith("-plain")}
    pairs = {name: other for name, other in plain.items() if other in rows}
    behaviour = {method: (f"{method}-fisher1b", f"{method}-fisher1") for method in METHODS}
    both = {method: pair for method, pair in behaviour.items() if all(name in rows for name in pair)}
    cpu = {name: sum(row["cpu_seconds"] for row in draws) / len(draws) for name, draws in rows.items()}
    part = "behaviour_by_passage"

    def inside(name: str) -> float:
        return sum(mean(row[part]) for row in rows[name]) / len(rows[name])

    return {
        "kl": means,
        "kl_draws": kl,
        "guided_gain": {name: means[name] / means[other] for name, other in pairs.items()},
        "guided_interval": {name: interval([rows[name], rows[other]], divided) for name, other in pairs.items()},
        "guided_cpu": {name: cpu[name] / cpu[other] for name, other in pairs.items()},
        "behaviour_gain": {method: ratio(inside(one), inside(other)) for method, (one, other) in both.items()},
        "behaviour_interval": {
            method: interval([rows[one], rows[other]], divided, part=part) for method, (one, other) in both.items()
        },
        "behaviour_overall": {method: means[one] / means[other] for method, (one, other) in both.items()},
    }


def mean(passages: Sequence[Mapping[str, float]]) -> float:
    """KL per token."""
    return sum(each["kl_sum"] for each in passages) / sum(each["tokens"] for each in passages)


if __name__ == "__main__":
    main()
