"""QuantLRM's importance of input channels from fine-tuning (arXiv 2602.02581) against methods that don't know it.

python benchmarks/quantlrm.py [--quick] [--distilled FOLDER] [--data FOLDER] [--only PART …] [--work FOLDER] --json OUT

SmolLM2-135M is the base; the model that is quantized is its student of benchmarks/distillation.py, or --distilled, any
checkpoint that was fine-tuned from it. AWQ to w3g64 with its own scales, powers of E|x|, and with QuantLRM's, powers of
what the updates say of a channel; the same calibration tokens for both, half WikiText-2 validation and half the bundled
attribution traces, others in each draw. Then plans of 3.5 effective bits from w3g64 and w4g64 by GPTQ: by the scorer
``updates``, which weighs squared errors of columns by QuantLRM's importance, by ``weight_error``, the same without
weights, and at random. KL is that to the distilled model in 16 bits, on the bundled held-out traces and WikiText-2
test. Intervals (95%, ``_ci``) are over passages, the same for both sides, and draws. Outcomes of jobs lie in the work
folder, so that a run that was stopped goes on. --quick: 8 x 512 calibration tokens, one draw, 4 passages of WikiText-2.

Keys of OUT (null: not measured); jobs: awq, quantlrm, plan_updates, plan_weight_error, plan_random0 to plan_random2
    kl                  of each job over both texts, mean of its draws, in nats a token
    kl_ci               its 95% interval
    kl_draws            of each draw
    kl_traces           on the held-out traces
    kl_wikitext         on WikiText-2 test
    kl_ratio            AWQ with QuantLRM's scales over plain AWQ
    kl_ratio_ci         its 95% interval
    kl_ratio_traces     the same on the traces
    kl_ratio_traces_ci  its 95% interval
    kl_ratio_wikitext   the same on WikiText-2 test
    kl_ratio_wikitext_ci    its 95% interval
    kl_ratio_plan_random    the plan by updates over the random ones, their KL averaged
    kl_ratio_plan_random_ci    its 95% interval, over the random plans too
    kl_ratio_plan_weight_error    the plan by updates over that by weight_error
    kl_ratio_plan_weight_error_ci    its 95% interval
    effective_bits      of each job's plan
    changed             share of the linear modules' weights that fine-tuning changed, in the checkpoint's type
    cpu_seconds         of each job's compressions, mean of its draws
    draws               of calibration samples, for each AWQ
    samples             calibration samples of 512 tokens
    passages            passages of WikiText-2 test, 512 tokens each
    threads             of every measurement
    quick               whether this was a quick run
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import bench
import distillation
import machine
from intervals import divided, interval

import mixprec as mp
from mixprec.compress.options import SolveOptions, UpdatesFile
from mixprec.core import artifacts
from mixprec.plan import bits, sensitivity
from mixprec.plan.budget import budget_plan
from mixprec.plan.budgetspec import BudgetSpec
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan, save_plan
from mixprec.sensitivity import run as scoring
from mixprec.sensitivity.spec import SensitivitySpec

ROOT = Path(__file__).resolve().parents[1]
BASE = distillation.STUDENT
AWQ = ("awq", "quantlrm")
SCORERS = ("updates", "weight_error")
RANDOM = tuple(f"plan_random{seed}" for seed in range(3))
PLANS = (*(f"plan_{scorer}" for scorer in SCORERS), *RANDOM)
TEXTS = ("both", "traces", "wikitext")
BITS = 3.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tokens, one draw")
    parser.add_argument("--distilled", type=Path, help="fine-tuned from the base; default: what distillation.py makes")
    data = Path(os.environ.get("MIXPREC_DATA") or ROOT.parent / "shared/data")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--draws", type=int, help="of calibration samples; default 3, quick 1")
    parser.add_argument("--only", nargs="*", choices=["awq", "plans"], help="leave the other figures out")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark_quantlrm"), help="outcomes of jobs, kept")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    arguments.samples, arguments.passages = (8, 4) if arguments.quick else (32, 12)
    arguments.draws = arguments.draws or (1 if arguments.quick else 3)
    arguments.model = str(arguments.distilled or student(arguments.work))
    jobs = Updated(arguments)
    for name in [*(f"{name}#{draw}" for draw in range(arguments.draws) for name in AWQ), *PLANS]:
        if wanted(name, arguments.only):
            jobs.job(name)
    about = {key: getattr(arguments, key) for key in ("draws", "samples", "passages", "threads", "quick")}
    figures = told(jobs.outcomes()) | {"changed": jobs.changed} | about
    machine.write(arguments.json, __file__, figures, [arguments.data, arguments.work])


def wanted(name: str, parts: Sequence[str] | None) -> bool:
    """Whether a job is of one of the ``parts``; all are where none is named."""
    return not parts or ("plans" if name in PLANS else "awq") in parts


def student(work: Path) -> Path:
    """What distillation.py makes with its own settings."""
    folder = work / "distillation"
    distillation.distilled(folder, 56)
    return folder / "distilled"


class Updated(bench.Bench):
    """A model that was fine-tuned, quantized with what its updates say and without."""

    candidates = ("w3g64", "w4g64")

    @cached_property
    def updates(self) -> UpdatesFile:
        """What fine-tuning changed."""
        path = self.work / "updates.safetensors"
        if path.is_file():
            return UpdatesFile(path=str(path), sha256=artifacts.sha256_file(path))
        return mp.updates(BASE, self.model, path)

    @property
    def changed(self) -> float:
        """Share of the weights that fine-tuning changed."""
        extent = artifacts.load_tensors(Path(self.updates.path))[1]["updates"]["extent"]
        return float(extent["changed"] / (extent["changed"] + extent["zeros"]))

    def outcome(self, name: str) -> dict[str, Any]:
        """Compress by a job's plan and compare it with the distilled model."""
        how, _, draw = name.partition("#")
        plan, checkpoint = self.plan(how), self.work / f"checkpoint_{os.getpid()}"
        shutil.rmtree(checkpoint, ignore_errors=True)
        save_plan(self.work / f"{how}.plan.json", plan)
        job = {"plan": str(self.work / f"{how}.plan.json"), "tokens": str(self.samples(int(draw or 0))),
               "out": str(checkpoint), "model": self.model, "threads": self.arguments.threads}  # fmt: skip
        if how == "quantlrm":
            # The path is in no dump of the options.
            job["options"] = {"updates": {"path": self.updates.path, "sha256": self.updates.sha256}}
        row = bench.once("compress_once.py", job)
        found = self.compared(checkpoint)
        shutil.rmtree(checkpoint)
        parts = {"both": found, "traces": found[: len(self.traces)], "wikitext": found[len(self.traces) :]}
        passages = {text: bench.by_passage(results) for text, results in parts.items()}
        return row | passages | {"effective_bits": bits.account(plan, self.inventory).effective_bits}

    def outcomes(self) -> dict[str, list[dict[str, Any]]]:
        """Of each job that is done, its draws."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name in (*AWQ, *PLANS):
            draws = [f"{name}#{draw}" for draw in range(self.arguments.draws)] if name in AWQ else [name]
            paths = [self.work / f"{each}.json" for each in draws]
            if all(path.is_file() for path in paths):
                found[name] = [artifacts.read_object(path) for path in paths]
        return found

    def samples(self, draw: int) -> Path:
        """The calibration samples of a draw."""
        path = self.work / f"calibration_{draw}.safetensors"
        if draw and not path.is_file():
            artifacts.save_tensors(path, {"tokens": self._drawn(seed=draw).tokens})
        return path if draw else self.tokens

    def plan(self, how: str) -> Plan:
        """w3g64 everywhere for AWQ, or a plan of the budget."""
        if how in AWQ:
            return build_plan(PlanSpec.model_validate({"default": "w3g64"}), self.inventory, self.model, "awq")
        spec: dict[str, Any] = {"effective_bits": BITS, "candidates": list(self.candidates)}
        if how in RANDOM:
            spec |= {"allocation": "random", "seed": RANDOM.index(how)}
        table = None if how in RANDOM else self.table(how.removeprefix("plan_"))
        return budget_plan(BudgetSpec.model_validate(spec), self.inventory, self.model, "gptq", table)

    def table(self, scorer: str) -> sensitivity.Sensitivity:
        """The scores of a scorer; one look at the candidates' errors gives all of them."""
        folder = self.work / "sensitivity"
        if not (folder / f"{scorer}.json").is_file():
            subject = self.subject("sensitivity", options=SolveOptions(updates=self.updates))
            words = {"scorer": "updates", "formats": list(self.candidates), "samples": self.few}
            scoring.score(subject, SensitivitySpec.model_validate(words))
        return sensitivity.load(folder / f"{scorer}.json", self.inventory)


def told(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The figures, of ``rows``: job -> its draws."""
    figures: dict[str, Any] = {
        "kl": {name: kl(draws) for name, draws in rows.items()},
        "kl_ci": {name: interval([draws], lambda own: own, part="both") for name, draws in rows.items()},
        "kl_draws": {name: [kl([draw]) for draw in draws] for name, draws in rows.items()},
        "kl_traces": {name: kl(draws, "traces") for name, draws in rows.items()},
        "kl_wikitext": {name: kl(draws, "wikitext") for name, draws in rows.items()},
    }
    ours, plain = rows.get("quantlrm"), rows.get("awq")
    for text in TEXTS:
        figures |= compared(f"kl_ratio{'' if text == 'both' else f'_{text}'}", ours, plain, text)
    chance = [draws[0] for name, draws in rows.items() if name in RANDOM]
    whole = chance if len(chance) == len(RANDOM) else None
    figures |= compared("kl_ratio_plan_random", rows.get("plan_updates"), whole)
    figures |= compared("kl_ratio_plan_weight_error", rows.get("plan_updates"), rows.get("plan_weight_error"))
    figures["effective_bits"] = {name: draws[0]["effective_bits"] for name, draws in rows.items()}
    return figures | {"cpu_seconds": {name: mean(d["cpu_seconds"] for d in draws) for name, draws in rows.items()}}


def compared(
    key: str, ours: Sequence[Any] | None, other: Sequence[Any] | None, text: str = "both"
) -> dict[str, float | list[float] | None]:
    """Our KL over another's and the ratio's interval; null where one of them is not measured."""
    if ours is None or other is None:
        return {key: None, f"{key}_ci": None}
    return {key: kl(ours, text) / kl(other, text), f"{key}_ci": interval([ours, other], divided, part=text)}


def kl(draws: Sequence[Mapping[str, Any]], text: str = "both") -> float:
    """Nats a token on a text, mean of the draws."""
    return mean(sum(p["kl_sum"] for p in draw[text]) / sum(p["tokens"] for p in draw[text]) for draw in draws)


if __name__ == "__main__":
    main()
