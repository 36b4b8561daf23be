"""Scorers of sensitivity against measured damage, what they cost, and whether a behaviour's own scores protect it.

python benchmarks/scoring.py [--quick] [--modules N] [--passages N] [--tokens N] [--work FOLDER] --json OUT

SmolLM2-135M, GPTQ with groups of 64, candidates of 3 and 4 bits calibrated on the bundled attribution traces. Scores
come from those traces, everything else is measured on the bundled held-out ones. Every linear module alone is put into
3 bits, and the KL that this costs ranks the modules; scorers are judged by how they rank them. Then plans of equal size
are made from the Fisher scores of all tokens, and from those of one behaviour's spans, and both are measured on that
behaviour's spans.
--quick takes twenty modules and a few tokens: it shows that the benchmark runs.

Keys of OUT
    spearman_best_scorer    rank correlation of the best scorer with measured single-module KL
    best_scorer             which one that is
    spearman                of every scorer, all tokens
    spearman_ci             95% interval over held-out passages
    kendall                 Kendall's tau
    top10_overlap           how many of the ten modules that cost most are among the scorer's ten
    spearman_behaviours     of Fisher scores and of the paper's importance, of a behaviour's spans, with KL on its spans
    spearman_ceiling        how well the measurement agrees with itself: half the passages against the other half, for
                            all of them together (Spearman-Brown)
    control                 KL of the model without any change
    modules                 modules measured alone
    measured_tokens         predicted tokens compared for each
    scored_tokens           tokens that scores come from
    seconds                 CPU seconds: one forward pass over the scored tokens, the sweep with the gradients of all
                            tokens and of four behaviours, the candidates, one module measured
    forwards                the sweep in forward passes over its tokens
    targeted_bits           effective bits of the plans for a behaviour
    targeted                KL on a behaviour's spans: of the plan by its own scores, by those of all tokens, their
                            difference and its paired 95% interval over passages
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import machine

MODEL = "smollm2-135m-instruct"
FORMATS = ("w3g64", "w4g64")
BUDGET = 3.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--modules", type=int, help="so many modules alone, drawn at random; default: all")
    parser.add_argument("--passages", type=int, default=12, help="held-out traces that single modules are measured on")
    parser.add_argument("--tokens", type=int, default=192, help="tokens of each of them")
    parser.add_argument("--scored", type=int, default=8, help="attribution traces that scores come from")
    parser.add_argument("--scored-tokens", type=int, default=448, help="tokens of each of them")
    parser.add_argument(
        "--importance", type=Path, help="importance.json of the attribution traces; default: compute it"
    )
    parser.add_argument("--work", type=Path, help="folder to work in, and to go on in; default: a temporary one")
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = study(arguments, arguments.work or Path(folder))
    machine.write(arguments.json, __file__, figures, (arguments.importance,))


def study(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures."""
    from mixprec.importance import artifact
    from mixprec.sensitivity import evidence, run
    from mixprec.traces.store import BEHAVIOURS

    clock = machine.Clock()
    clock.watch(evidence, "sweep", "sweep")
    subject, spec = prepare(arguments, work)
    clock.watch(subject, "candidates", "candidates")
    importance = arguments.importance or attribute(subject, work / "importance", arguments.quick)
    subject.importance = artifact.load(importance)
    candidates = subject.candidates(spec.treatments("gptq"))
    run.score(subject, spec, candidates)
    tables = run.load_all(subject)
    held_out = passages(subject, "bundled:held_out", 2 if arguments.quick else None)
    judged = singles(subject, arguments, candidates, tables, held_out, work, clock)
    scored = subject.scored(spec)
    figures: dict[str, Any] = judged | {
        "scored_tokens": sum(len(each.tokens) for each in scored),
        "seconds": {"forward": forward(subject, scored), **clock.seconds},
        "targeted_bits": BUDGET,
        "targeted": targeted(subject, candidates, tables, held_out, BEHAVIOURS),
    }
    sweep = clock.seconds.get("sweep")
    figures["forwards"] = sweep / figures["seconds"]["forward"] if sweep else None
    return figures


def prepare(arguments: argparse.Namespace, work: Path) -> tuple[Any, Any]:
    """What is scored and how."""
    from mixprec.calibration import data
    from mixprec.calibration.spec import CalibrationSpec
    from mixprec.models.config import load_config
    from mixprec.models.model import Model
    from mixprec.sensitivity.run import Subject
    from mixprec.sensitivity.spec import SensitivitySpec
    from mixprec.traces.store import BEHAVIOURS

    config = load_config(MODEL)
    encoder = Model(MODEL).encoder
    size = {"samples": 2, "tokens": 128} if arguments.quick else {"samples": 16, "tokens": 512}
    calibrating = CalibrationSpec.model_validate({"traces": "bundled:attribution", **size})
    calibration = data.load(calibrating, encoder, str, config.max_position_embeddings)
    subject = Subject(Model(MODEL), "gptq", calibration, work / "sensitivity", traces=annotated("bundled:attribution"))
    spec = SensitivitySpec.model_validate(
        {
            "formats": FORMATS,
            "behaviours": BEHAVIOURS,
            "samples": 2 if arguments.quick else arguments.scored,
            "max_tokens": arguments.scored_tokens,
        }
    )
    return subject, spec


def annotated(source: str) -> Any:
    from mixprec.traces import spans, store

    return [spans.char_spans(trace, "paper") for trace in store.load(source)]


def attribute(subject: Any, folder: Path, quick: bool) -> Path:
    """The paper's importance on the attribution traces."""
    from mixprec.importance import attribute as stage

    traces = subject.traces[:2] if quick else subject.traces
    loaded = subject.model.load()
    stage.attribute(loaded, traces, folder, presets=("paper",), identity=subject.model.identity, resamples=0)
    return folder / "importance.json"


def passages(subject: Any, source: str, first: int | None) -> list[Any]:
    from mixprec.evaluate.passages import from_traces

    config, encoder = subject.model.config, subject.model.encoder
    return from_traces(annotated(source)[:first], encoder, config.max_position_embeddings)[0]


def cut(held_out: Sequence[Any], tokens: int) -> list[Any]:
    """Of each passage the part in the middle, where all behaviours are, with the spans that lie within."""
    from mixprec.evaluate.passages import Passage

    found = []
    for passage in held_out:
        start = max(0, (len(passage.tokens) - tokens) // 2)
        end = start + tokens
        spans = tuple(
            span._replace(start=max(span.start, start) - start, end=min(span.end, end) - start)
            for span in passage.spans
            if span.start < end and span.end > start
        )
        found.append(Passage(passage.tokens[start:end], spans))
    return found


def singles(
    subject: Any,
    arguments: argparse.Namespace,
    candidates: Any,
    tables: Sequence[Any],
    held_out: Sequence[Any],
    work: Path,
    clock: machine.Clock,
) -> dict[str, Any]:
    """Every module alone in 3 bits, and how scorers rank them."""
    from mixprec.calibration.windows import shuffled
    from mixprec.sensitivity import ablation
    from mixprec.sensitivity.spec import AblationSpec
    from mixprec.walk.restarts import Restarts

    clock.watch(Restarts, "measure", "measured")
    labels = [module.label for module in subject.model.decoder.linears]
    count = min(20 if arguments.quick else arguments.modules or len(labels), len(labels))
    each = tuple(labels[number] for number in sorted(shuffled(len(labels), 0, "modules")[:count]))
    spec = AblationSpec.model_validate({"each": each, "formats": FORMATS[:1]})
    measured_on = cut(held_out[: arguments.passages], 32 if arguments.quick else arguments.tokens)
    result = ablation.ablate(subject, spec, candidates, measured_on, tables, work / "cells")
    if "measured" in clock.seconds:
        clock.seconds["measured"] /= len(each) + 1
    rows = [row for row in result["validity"] if row["metric"] == "kl" and row["spearman"] is not None]
    on_all = {row["scorer"]: row for row in rows if row["target"] == row["scores_of"] == "all"}
    best = max(on_all, key=lambda name: on_all[name]["spearman"])
    behaviours = {
        scorer: {row["target"]: row["spearman"] for row in rows if row["scorer"] == scorer and of(row)}
        for scorer in ("fisher", "importance")
    }
    return {
        "spearman_best_scorer": on_all[best]["spearman"],
        "best_scorer": best,
        **{
            key: {name: row[of_row] for name, row in on_all.items()}
            for key, of_row in (
                ("spearman", "spearman"),
                ("spearman_ci", "spearman_ci_passages"),
                ("kendall", "kendall"),
                ("top10_overlap", "top10_overlap"),
            )
        },
        "spearman_behaviours": behaviours,
        "spearman_ceiling": ceiling(work / "cells"),
        "control": result["control"],
        "modules": len(each),
        "measured_tokens": result["tokens"]["all"],
    }


def of(row: Mapping[str, Any]) -> bool:
    return bool(row["target"] == row["scores_of"] != "all")


def ceiling(folder: Path) -> float | None:
    """Spearman's ρ of two halves of the passages, raised to all of them: 2ρ / (1 + ρ)."""
    import json

    from scipy.stats import spearmanr

    rows = [json.loads(line) for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    kl = [row["sums"]["kl"]["all"] for row in rows if row["cell"]["addresses"]]
    if not kl or len(kl[0]) < 2:
        return None
    rho = float(spearmanr([sum(row[::2]) for row in kl], [sum(row[1::2]) for row in kl]).statistic)
    return 2 * rho / (1 + rho)


def targeted(
    subject: Any, candidates: Any, tables: Sequence[Any], held_out: Sequence[Any], behaviours: Sequence[str]
) -> dict[str, Any]:
    """Plans of one size by a behaviour's scores and by all tokens', on the behaviour's spans."""
    from mixprec.evaluate.metrics import bootstrap_mean
    from mixprec.plan.budget import BudgetSpec, budget_plan
    from mixprec.sensitivity.passages import inside
    from mixprec.walk.restarts import Restarts

    fisher = {table.target: table for table in tables if table.scorer == "fisher"}
    spec = BudgetSpec.model_validate({"effective_bits": BUDGET, "candidates": FORMATS})
    restarts = Restarts(subject.model.load(), [passage.tokens for passage in held_out])
    kl = {}
    for target, table in fisher.items():
        plan = budget_plan(spec, subject.model.decoder, subject.model.id, "gptq", table)
        weights = {address: candidates.weight(address, str(form)) for address, form in plan.formats.items()}
        kl[target] = [found.kl for found in restarts.measure(weights)]
    found = {}
    for behaviour in behaviours:
        where = [inside(passage, behaviour) for passage in held_out]
        sizes = [int(each.sum()) for each in where]
        own, other = (
            [float(each[w].sum()) for each, w in zip(kl[target], where, strict=True)] for target in (behaviour, "all")
        )
        sums = [mine - theirs for mine, theirs in zip(own, other, strict=True)]
        pairs = [(s, n) for s, n in zip(sums, sizes, strict=True) if n]
        found[behaviour] = {
            "kl_own": sum(own) / sum(sizes),
            "kl_all": sum(other) / sum(sizes),
            "difference": sum(sums) / sum(sizes),
            "ci": bootstrap_mean([s for s, _ in pairs], [n for _, n in pairs]),
            "tokens": sum(sizes),
        }
    return found


def forward(subject: Any, scored: Sequence[Any]) -> float:
    """CPU seconds of one forward pass over the scored tokens, head included."""
    import torch

    model = subject.model.load().model

    def run() -> None:
        with torch.no_grad():
            for each in scored:
                model(input_ids=each.tokens[None], use_cache=False)

    return machine.timed(run)


if __name__ == "__main__":
    main()
