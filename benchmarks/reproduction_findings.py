"""What the paper found (arXiv 2504.02010), and how a run on a small model is asked whether that holds there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from reproduction_importance import (
    among_first,
    annotations_agree,
    first_overall,
    gained_by_distillation,
    lost_alike,
    lost_most,
    together,
)

BENCHMARKS = ("aime_2024", "folio", "temporal_sequences", "musique")
Judge = Callable[[Path], dict[str, Any]]


class Finding(NamedTuple):
    """``paper``: where the paper says it. ``recipe``: of recipes/small; ``judge``: its run folder -> the verdict; None
    for what can't be decided at this scale, and ``why``."""

    claim: str
    paper: str
    recipe: str | None = None
    judge: Judge | None = None
    why: str = ""


def verdict(interval: list[float] | None) -> str:
    """Of a difference that the paper has above 0."""
    if interval is None:
        return "open"
    return "holds" if interval[0] > 0 else "fails" if interval[1] < 0 else "open"


def summary(folder: Path) -> dict[str, Any]:
    from mixprec.report.shapes import read_summary

    return read_summary(folder / "summary.json")


def worse(*pairs: tuple[str, str]) -> Judge:
    """KL of each pair's first variant is above that of its second, passage by passage."""

    def judge(folder: Path) -> dict[str, Any]:
        run, numbers, verdicts = summary(folder), {}, []
        for first, second in pairs:
            found = run["differences"][first][second]
            verdicts.append(verdict(found["ci"]))
            numbers[f"KL {first} − {second}"] = {"difference": found["kl_difference"], "ci": found["ci"]}
        return {"verdict": together(verdicts), "numbers": numbers}

    return judge


def harmless(*variants: str) -> Judge:
    """No benchmark's right answers become less likely in these variants."""

    def judge(folder: Path) -> dict[str, Any]:
        moved, numbers, verdicts = summary(folder)["likelihood"]["differences"], {}, []
        for variant in variants:
            for name in BENCHMARKS:
                found = moved[variant][name]["gold_nll"]
                verdicts.append("fails" if verdict(found["ci"]) == "holds" else "holds")
                numbers[f"nats {variant}, {name}"] = found
        return {"verdict": together(verdicts), "numbers": numbers}

    return judge


def collapse(folder: Path) -> dict[str, Any]:
    """Damage grows with every step of sparsity, and the first that hurts a benchmark comes later for easier ones."""
    run = summary(folder)
    names = [name for name in run["variants"] if name != "original"]
    steps = list(zip(names[1:], names, strict=False))
    grows = [run["differences"][more][less] for more, less in steps]
    moved = run["likelihood"]["differences"]
    first = {
        benchmark: next((name for name in names if verdict(moved[name][benchmark]["gold_nll"]["ci"]) == "holds"), None)
        for benchmark in BENCHMARKS
    }
    numbers: dict[str, Any] = {
        f"KL {more} − {less}": {"difference": each["kl_difference"], "ci": each["ci"]}
        for (more, less), each in zip(steps, grows, strict=True)
    }
    numbers["first sparsity at which the right answers become less likely"] = first
    return {"verdict": together([verdict(each["ci"]) for each in grows]), "numbers": numbers}


FINDINGS = (
    Finding("3 bits damage more than 4, by GPTQ, GPTAQ and ANY4/ANY3", "Takeaway 3.1, Table 1", "table1",
            worse(("gptq_w3", "gptq_w4"), ("gptaq_w3", "gptaq_w4"), ("any3", "any4"))),
    Finding("4-bit models answer as their original", "§3.2, Table 1", "table1",
            harmless("awq_w4", "gptq_w4", "gptaq_w4", "any4")),
    Finding("GPTAQ is better than GPTQ at 3 bits", "§3.2, Table 1", "table1", worse(("gptq_w3", "gptaq_w3"))),
    Finding("half of the weights pruned damage more than 4 bits", "§3.1, Table 1", "table1",
            worse(("sparsegpt_50", "gptq_w4"), ("alphapruning_50", "gptq_w4"))),
    Finding("AlphaPruning is better than SparseGPT at 50%", "§3.1, Table 1", "table1",
            worse(("sparsegpt_50", "alphapruning_50"))),
    Finding("AlphaPruning at 30% damages less than at 50%", "Table 1", "table1",
            worse(("alphapruning_50", "alphapruning_30"))),
    Finding("damage grows with sparsity up to collapse", "Takeaway 3.2, Table 2", "table2", collapse),
    Finding("the last up projection alone in 3 bits does more damage than others of its layer and its kind",
            "§4.2, Table 3", "table3",
            worse(*(("only_30_up_w3", f"only_{other}_w3") for other in ("30_gate", "30_v", "29_up", "1_up")))),
    Finding("the last up projection in 4 and 5 bits does more damage than the first", "Appendix N, Table 9", "table3",
            worse(("only_30_up_w4", "only_1_up_w4"), ("only_30_up_w5", "only_1_up_w5"))),
    Finding("3-bit AWQ is better with the last MLP kept", "§5.2, Table 4", "table4",
            worse(("uniform_w3", "protect_last_mlp"))),
    Finding("the last MLP is worth more than as many random weights", "a control that the paper lacks", "table4",
            worse(("protect_random_0", "protect_last_mlp"), ("protect_random_1", "protect_last_mlp"))),
    Finding("distillation makes the last up projection the most important module", "Takeaway 4.1, Figures 2 and 4",
            "figures", first_overall),
    Finding("the last up projection is first or second for every behaviour", "Appendix J, Figures 2, 4 and 11",
            "figures", among_first(2)),
    Finding("the last up projection gains importance by distillation", "Takeaway 4.3, Figures 2, 5 and 13", "figures",
            gained_by_distillation),
    Finding("4-bit quantization takes more importance from the last layer than from others",
            "Takeaway 5, Figures 3, 6, 7 and 12", "figures", lost_most("last layer", "awq_w4", "gptq_w4")),
    Finding("4-bit quantization takes more importance from gate projections than from other kinds",
            "Takeaway 5, Figures 3, 6, 7 and 12", "figures", lost_most("gates", "awq_w4", "gptq_w4")),
    Finding("pruning takes more importance from the last layer than from others", "Appendix I, Figure 10", "figures",
            lost_most("last layer", "alphapruning_30")),
    Finding("pruning takes importance from the modules that quantization takes it from", "Appendix I, Figure 10",
            "figures", lost_alike("alphapruning_30", "awq_w4")),
    Finding("another annotation of the traces ranks the modules alike", "Appendix G, Table 6", "table6",
            annotations_agree),
    Finding("pruning hurts knowledge more than reasoning", "Takeaway 3.3",
            why="knowledge of MuSiQue's facts is out of reach of 135M weights, compressed or not"),
    Finding("retrieval makes up for lost knowledge", "Table 8", why="the same"),
    Finding("short outputs are right more often than long ones", "Tables 10 and 11",
            why="the model answers next to nothing right, however long it thinks"),
)  # fmt: skip
