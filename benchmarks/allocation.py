"""Allocations of one budget: ours, controls and peers' allocators; same GPTQ, same tokens, same candidates, same bytes.

python benchmarks/allocation.py [--quick] [--model MODEL] [--samples N] [--only JOB …] [--work FOLDER] --json OUT

SmolLM2-135M, or --model (a folder or .gguf file). Calibration, scores and exchange: 32 x 512 tokens, half WikiText-2
validation (--data) and half the bundled attribution traces; the peers' allocators see the same tokens. Evaluation: the
bundled held-out traces and WikiText-2 test (--passages of 512 tokens). Candidates: w2g64, w3g64, w4g64, w5g64, w6g64,
w8g64, each module by itself. Only the allocation differs: every plan is compressed by mixprec's GPTQ. Each job's
outcome lies in the work folder, so that a run that was stopped goes on; equal plans are compressed once. --quick:
8 x 512 tokens, the budget of 3.25 bits, 3 joint plans measured, fewer controls, no ablation, no further draws, 4
passages of WikiText-2.

One plan compressed twice is not one model: GPTQ's roundings follow the last digits of its sums. So the plans that the
ratios are taken of are compressed --draws times, each with the calibration samples in another order; KL is the mean,
and intervals are over passages and draws (of D draws D - 1 are drawn again, which leaves their variance unbiased: Rao
and Wu, JASA 83, 1988). Equal plans share their draws; others are compressed once, with intervals over passages only.

Jobs: ablation (single-module KL on the held-out traces), allocate_autoscheme, allocate_modelopt, scores,
sparse_uniform, sparse_alphapruning, sparse_ours, and ALLOCATION@BUDGET, such as ours@3.25: ours (scores, then
exchange), additive (where the exchange started), uniform, last, inverse, random0 to random2, importance (the
paper's, as scores), llama_cpp (the largest of llama.cpp's mixtures that fits), autoscheme, modelopt;
protection@paper is the paper's last MLP kept in 16 bits and everything else in w3g64, ours@paper our plan of its
size; llama_cpp@q3_k_m is that mixture, ours@q3_k_m our plan of its size; backtracking@3.25 is made by scores on
backtracking spans, everywhere@3.25 by scores on all tokens of the same traces. ours@3.25#1 is
another draw of ours@3.25.

Keys of OUT (null: not measured)
    spearman_best_scorer        of predicted with measured single-module KL at w3g64 on all tokens, the best scorer
    spearman_best_scorer_ci     its 95% interval over passages
    spearman_best_scorer_name   which one that is
    spearman_importance         the same for the paper's importance
    spearman_by_behaviour       behaviour -> scorer -> Spearman, on the behaviour's spans
    kl                          job -> mean KL over both texts and the plan's draws, in nats
    kl_ci                       its 95% interval
    kl_draws                    job -> of each draw
    kl_predicted                job -> sum of the modules' scores, those that ours starts from
    kl_traces                   on the held-out traces
    kl_wikitext                 on WikiText-2 test
    effective_bits              of each job's plan
    kl_ratio_vs_best_peer       our KL over that of the best control or peer at no more bytes: the worst of 3.25, 3.5
                                and 4.0
    kl_ratio_vs_best_peer_325   at 3.25 effective bits
    kl_ratio_vs_best_peer_350   at 3.5
    kl_ratio_vs_best_peer_400   at 4.0
    kl_ratio_predicted          budget -> kl_predicted of additive over that of the best control or peer
    kl_ratio_ci                 budget -> 95% interval of that ratio; the same passages for both
    best_other                  budget -> which control or peer was best
    kl_ratio_exchange           budget -> our KL with exchange over that without, which was compressed once
    gap_recovered               (KL uniform w3g64 - KL ours at 3.5) / KL uniform w3g64
    gap_recovered_ci            its 95% interval
    gap_recovered_protection    the same for the paper's protection, at its own size
    kl_ratio_vs_protection      ours at the protection's size over the protection
    kl_ratio_vs_q3_k_m          ours at the size of llama.cpp's mixture Q3_K_M over that mixture
    kl_ratio_backtracking       KL on backtracking spans of the plan for them over that of the plan for all tokens, 3.25
    kl_ratio_backtracking_ci    its 95% interval
    kl_ratio_sparse_vs_uniform        allocated sparsity of 50% over uniform, both SparseGPT
    kl_ratio_sparse_vs_alphapruning   over AlphaPruning
    speedup_vs_autoscheme       its wall seconds for one budget over ours (candidates, scores, solver), same threads;
                                null where other processes took the cores away
    speedup_vs_modelopt         the same for auto_quantize
    cpu_speedup_vs_autoscheme   in CPU seconds, over all budgets
    cpu_speedup_vs_modelopt     in CPU seconds, over all budgets
    scoring_over_forward        CPU seconds of the sweep that scores, per token, over those of a forward pass
    peak_bytes                  allocator -> peak resident memory of its process
    model               whose allocations these are
    draws               compressions of each plan that the ratios are taken of
    samples             calibration samples of 512 tokens
    passages            passages of WikiText-2 test, 512 tokens each
    threads             threads of every job
    proposals           joint plans that an exchange measured at most
    quick               whether this was a quick run
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import machine
from intervals import divided, interval, ratio

ROOT = Path(__file__).resolve().parents[1]
CANDIDATES = ("w2g64", "w3g64", "w4g64", "w5g64", "w6g64", "w8g64")
SPARSITIES = ("0.3", "0.4", "0.5", "0.6", "0.7")
BUDGETS = ("3.25", "3.5", "4.0")
#: Bits of the candidates' scales per weight, which the peers' counts leave out.
SCALES = 0.25
CONTROLS = ("uniform", "last", "inverse", "random0", "random1", "random2", "importance", "llama_cpp")
#: For the spans of a behaviour, and for all tokens of the same traces.
TARGETED = ("backtracking@3.25", "everywhere@3.25")
PEERS = {"autoscheme": "autoround", "modelopt": "modelopt"}
#: Most telling first: a run that is stopped has these.
ORDER = ("ours", "uniform", "autoscheme", "modelopt", "additive", *CONTROLS[1:])
#: Compressed several times, as those for a behaviour's spans are.
DRAWN = ("ours", "uniform", "autoscheme", "modelopt")
#: Left out of quick runs.
LONG = ("additive", "inverse", "random1", "random2", "importance")
#: Calibration samples of all methods and allocators.
SAMPLES, QUICK_SAMPLES = 32, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3.25 bits only, one random draw, no ablation")
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", default="smollm2-135m-instruct", help="folder or .gguf file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--passages", type=int, help="passages of 512 tokens of WikiText test; default 16")
    parser.add_argument("--samples", type=int, help=f"calibration samples of 512 tokens; default {SAMPLES}")
    parser.add_argument("--proposals", type=int, help="joint plans that an exchange measures at most; default 20")
    parser.add_argument("--draws", type=int, help="compressions of the compared plans; default 3, quick 1")
    parser.add_argument("--only", nargs="*", help="jobs by name, such as scores ours@3.25")
    parser.add_argument("--work", default="runs/benchmark_allocation", help="outcomes of single jobs, kept")
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    arguments.samples = arguments.samples or (QUICK_SAMPLES if arguments.quick else SAMPLES)
    arguments.proposals = arguments.proposals or (3 if arguments.quick else 20)
    arguments.passages = arguments.passages or (4 if arguments.quick else 16)
    arguments.draws = arguments.draws or (1 if arguments.quick else 3)
    os.environ.setdefault("OMP_NUM_THREADS", str(arguments.threads))
    from allocation_jobs import Allocations

    bench = Allocations(arguments)
    for name in arguments.only if arguments.only is not None else jobs(arguments.quick, arguments.draws):
        bench.job(name)
    machine.write(arguments.json, __file__, figures(bench.outcomes(), arguments))


def jobs(quick: bool, draws: int) -> list[str]:
    """All jobs in their order."""
    budgets = BUDGETS[:1] if quick else BUDGETS
    names = [name for name in ORDER if not (quick and name in LONG)]
    found = ["scores", "allocate_autoscheme", "allocate_modelopt"]
    found += [f"{name}@{budget}" for budget in budgets for name in names[:4]]
    drawn = [f"{name}@{budget}" for budget in budgets for name in DRAWN] + ([] if quick else list(TARGETED))
    again = [f"{name}#{draw}" for draw in range(1, draws) for name in drawn]
    if quick:
        return [*found, *(f"{name}@3.25" for name in names[4:]), *again]
    found += ["ours@paper", "protection@paper", "ours@q3_k_m", "llama_cpp@q3_k_m", *TARGETED, "ablation"]
    found += [f"{name}@{budget}" for budget in budgets for name in names[4:]]
    return [*found, "sparse_uniform", "sparse_alphapruning", "sparse_ours", *again]


def figures(found: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """The keys of the output, from the jobs that are done."""
    measured = draws(found)
    part = {
        on: {name: mean(row["evaluation"][on]["kl_mean"] for row in rows) for name, rows in measured.items()}
        for on in ("both", "traces", "wikitext")
    }
    kl = part["both"]
    result: dict[str, Any] = {
        **ablation_figures(found.get("ablation")),
        "kl": kl,
        "kl_ci": {name: interval([rows], lambda own: own) for name, rows in measured.items()},
        "kl_draws": {name: [row["evaluation"]["both"]["kl_mean"] for row in rows] for name, rows in measured.items()},
        "kl_predicted": {name: rows[0].get("predicted_kl") for name, rows in measured.items()},
        "kl_traces": part["traces"],
        "kl_wikitext": part["wikitext"],
        "effective_bits": {name: rows[0]["effective_bits"] for name, rows in measured.items()},
    }
    ratios, intervals, best = {}, {}, {}
    for budget in BUDGETS:
        others = [f"{name}@{budget}" for name in (*CONTROLS, *PEERS) if f"{name}@{budget}" in measured]
        # Without both peers and the uniform plan there is no best one to compare with.
        needed = {f"{name}@{budget}" for name in (*PEERS, "uniform", "ours")} <= measured.keys()
        if not needed:
            ratios[budget] = intervals[budget] = best[budget] = None
            continue
        best[budget] = min(others, key=lambda name: kl[name]).partition("@")[0]
        pair = measured[f"ours@{budget}"], measured[f"{best[budget]}@{budget}"]
        ratios[budget] = kl[f"ours@{budget}"] / kl[f"{best[budget]}@{budget}"]
        intervals[budget] = interval(pair, divided)
    known = [each for each in ratios.values() if each is not None]
    result["kl_ratio_vs_best_peer"] = max(known) if len(known) == len(BUDGETS) else None
    result |= {f"kl_ratio_vs_best_peer_{round(100 * float(budget))}": value for budget, value in ratios.items()}
    result |= {"kl_ratio_ci": intervals, "best_other": best}
    result["kl_ratio_exchange"] = {b: ratio(kl.get(f"ours@{b}"), kl.get(f"additive@{b}")) for b in BUDGETS}
    forecast = {name: row for name, row in result["kl_predicted"].items() if row is not None}
    result["kl_ratio_predicted"] = {
        b: ratio(forecast.get(f"additive@{b}"), forecast.get(f"{other}@{b}")) for b, other in best.items()
    }
    three, ours = measured.get("uniform@3.25"), measured.get("ours@3.5")
    aimed = [measured[name] for name in TARGETED if name in measured]
    aimed = aimed if len(aimed) == len(TARGETED) else []
    shielded = ratio(kl.get("protection@paper"), kl.get("uniform@3.25"))
    recovered = ratio(kl.get("ours@3.5"), kl.get("uniform@3.25"))
    result |= {
        "gap_recovered": None if recovered is None else 1 - recovered,
        "gap_recovered_ci": interval((three, ours), lambda w3, own: 1 - own / w3) if three and ours else None,
        "gap_recovered_protection": None if shielded is None else 1 - shielded,
        "kl_ratio_vs_protection": ratio(kl.get("ours@paper"), kl.get("protection@paper")),
        "kl_ratio_vs_q3_k_m": ratio(kl.get("ours@q3_k_m"), kl.get("llama_cpp@q3_k_m")),
        "kl_ratio_backtracking": ratio(*(mean(map(backtracking, rows)) for rows in aimed)) if aimed else None,
        "kl_ratio_backtracking_ci": interval(aimed, divided, part="behaviour_by_passage") if aimed else None,
        "kl_ratio_sparse_vs_uniform": ratio(kl.get("sparse_ours"), kl.get("sparse_uniform")),
        "kl_ratio_sparse_vs_alphapruning": ratio(kl.get("sparse_ours"), kl.get("sparse_alphapruning")),
    }
    return (
        result
        | cost_figures(found, arguments)
        | {
            "model": arguments.model,
            "draws": arguments.draws,
            "samples": arguments.samples,
            "passages": arguments.passages,
            "threads": arguments.threads,
            "proposals": arguments.proposals,
            "quick": arguments.quick,
        }
    )


def ablation_figures(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of the rank correlations with measured damage."""
    names = ("spearman_best_scorer", "spearman_best_scorer_ci", "spearman_best_scorer_name", "spearman_importance")
    if found is None:
        return {**dict.fromkeys(names), "spearman_by_behaviour": None}
    rows = [row for row in found["validity"] if row["metric"] == "kl" and row["spearman"] is not None]
    predicted = [row for row in rows if row["scorer"] != "measured"]
    on_all = [row for row in predicted if row["target"] == "all" and row["scores_of"] == "all"]
    top = max(on_all, key=lambda row: row["spearman"])
    paper = next((row["spearman"] for row in on_all if row["scorer"] == "importance"), None)
    split: dict[str, dict[str, float]] = {}
    for row in predicted:
        if row["target"] != "all" and row["scores_of"] in ("all", row["target"]):
            split.setdefault(row["target"], {})[f"{row['scorer']}, {row['scores_of']}"] = row["spearman"]
    values = (top["spearman"], top["spearman_ci_passages"], top["scorer"], paper)
    return {**dict(zip(names, values, strict=True)), "spearman_by_behaviour": split}


def cost_figures(found: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Of what the allocators cost; ours: candidates, scores and solver."""
    ours = found.get("scores")
    result: dict[str, Any] = {
        "scoring_over_forward": None if ours is None else ours["sweep_cpu_seconds"] / ours["forward_cpu_seconds"],
        "peak_bytes": {"ours": None if ours is None else ours["peak_rss_bytes"]},
    }
    for peer in PEERS:
        theirs = found.get(f"allocate_{peer}")
        both = ours is not None and theirs is not None and not ours["resumed"]
        fair = both and undisturbed(ours, arguments.threads) and undisturbed(theirs, arguments.threads)
        # The first budget pays for the scores, which serve the others.
        result[f"speedup_vs_{peer}"] = theirs["seconds_each"][0] / ours["seconds_total"] if fair else None  # type: ignore[index]
        result[f"cpu_speedup_vs_{peer}"] = theirs["cpu_seconds"] / ours["cpu_seconds"] if both else None  # type: ignore[index]
        result["peak_bytes"][peer] = None if theirs is None else theirs["peak_rss_bytes"]
    return result


def undisturbed(row: Mapping[str, Any] | None, threads: int) -> bool:
    """Whether a job had its cores for itself: even loops on one thread use more than half of two."""
    return (
        row is not None
        and not row.get("resumed")
        and bool(row["cpu_seconds"] > (0.6 if threads > 1 else 0.9) * threads * row["seconds_total"])
    )


def backtracking(row: Mapping[str, Any]) -> float:
    """A job's KL on the backtracking spans of the held-out traces."""
    return float(row["behaviours"]["backtracking"]["kl_mean"])


def draws(found: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The outcomes of every plan that was evaluated: of its first compression, then of those with other orders."""
    measured: dict[str, list[Any]] = {}
    for name, row in sorted(found.items()):
        plan, _, draw = name.partition("#")
        if "evaluation" in row and (not draw or plan in found):
            measured.setdefault(plan, []).append(row)
    return measured


if __name__ == "__main__":
    main()
