"""Offline annotators against GPT-4o's annotations: by characters, and by the importance that results.

python benchmarks/annotation.py [--quick] [--data FOLDER] [--work FOLDER] --json OUT

The 120 traces of the paper with their annotations, which no annotator here was trained or tuned on. Truth is what
``mixprec annotate --preset paper`` finds of them. Shares are of characters that both label. Intervals (95%, ``_ci``)
are of 1,000 bootstrap resamples of the traces. Importance is what ``mixprec attribute`` computes of SmolLM2-135M in
float32, of traces spread over the four benchmarks and over lengths and cut at some tokens; both sides' traces are
resampled together. Statistics lie in the work folder, trace by trace, so that a run that was stopped goes on.

Keys of OUT
    traces_per_second         traces that the classifier annotates in a CPU second, with reading it left out
    traces_per_second_cues    the same for cue phrases
    recall_backtracking       of GPT-4o's characters with this label those to which the classifier gives it
    recall_uncertainty_estimation  see recall_backtracking
    recall_example_testing    see recall_backtracking
    recall_adding_knowledge   see recall_backtracking
    recall_initializing       see recall_backtracking; not scored
    recall_deduction          see recall_backtracking; not scored
    precision_backtracking    of the classifier's characters with this label those to which GPT-4o gives it
    precision_uncertainty_estimation  see precision_backtracking
    precision_example_testing  see precision_backtracking
    precision_adding_knowledge  see precision_backtracking
    precision_initializing    see precision_backtracking; not scored
    precision_deduction       see precision_backtracking; not scored
    f1_backtracking           harmonic mean of both
    f1_uncertainty_estimation  see f1_backtracking
    f1_example_testing        see f1_backtracking
    f1_adding_knowledge       see f1_backtracking
    f1_initializing           see f1_backtracking; not scored
    f1_deduction              see f1_backtracking; not scored
    written_f1_backtracking   F1 on a fifth of the text that the classifier learns from, by one that learned from the
                              rest of it, without offsets
    written_f1_uncertainty_estimation  see written_f1_backtracking
    written_f1_example_testing  see written_f1_backtracking
    written_f1_adding_knowledge  see written_f1_backtracking
    written_f1_initializing   see written_f1_backtracking
    written_f1_deduction      see written_f1_backtracking
    agreement                 characters with the same label, of all that both label
    characters                characters that both label
    importance_spearman       Spearman's correlation over all linear modules of importance from the classifier's
                              spans with importance from GPT-4o's, mean of the four behaviours
    importance_spearman_backtracking  of this behaviour alone
    importance_spearman_uncertainty_estimation  of this behaviour alone
    importance_spearman_example_testing  of this behaviour alone
    importance_spearman_adding_knowledge  of this behaviour alone
    halves_spearman           the same correlation of two halves of these traces with each other, both with GPT-4o's
                              spans: what so few traces leave to chance; mean over 1,000 splits
    halves_spearman_range     in which 95% of the splits lie
    importance_traces         traces of that
    importance_max_tokens     where they were cut
    recall_backtracking_ci  95% interval over traces
    recall_uncertainty_estimation_ci  95% interval over traces
    recall_example_testing_ci  95% interval over traces
    recall_adding_knowledge_ci  95% interval over traces
    recall_initializing_ci  95% interval over traces
    recall_deduction_ci  95% interval over traces
    precision_backtracking_ci  95% interval over traces
    precision_uncertainty_estimation_ci  95% interval over traces
    precision_example_testing_ci  95% interval over traces
    precision_adding_knowledge_ci  95% interval over traces
    precision_initializing_ci  95% interval over traces
    precision_deduction_ci  95% interval over traces
    f1_backtracking_ci  95% interval over traces
    f1_uncertainty_estimation_ci  95% interval over traces
    f1_example_testing_ci  95% interval over traces
    f1_adding_knowledge_ci  95% interval over traces
    f1_initializing_ci  95% interval over traces
    f1_deduction_ci  95% interval over traces
    importance_spearman_ci  95% interval over traces
    importance_spearman_backtracking_ci  95% interval over traces
    importance_spearman_uncertainty_estimation_ci  95% interval over traces
    importance_spearman_example_testing_ci  95% interval over traces
    importance_spearman_adding_knowledge_ci  95% interval over traces
    cues                      (a part) the same figures for cue phrases
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
RESAMPLES = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="importance of 16 traces up to 1,024 tokens")
    parser.add_argument("--data", default=os.environ.get("MIXPREC_DATA") or str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--only", choices=["labels", "importance"], help="leave the other figures out")
    parser.add_argument("--work", default="runs/benchmark_annotation", help="statistics of traces, kept")
    parser.add_argument("--json", required=True, help="where the figures go")
    arguments = parser.parse_args()
    from mixprec.traces import store

    traces = store.load(str(Path(arguments.data) / "r1_distill_llama_8b_awq_traces" / "traces.jsonl"))
    figures: dict[str, Any] = {}
    if arguments.only != "importance":
        figures |= labels(traces) | written()
    if arguments.only != "labels":
        figures = merged(figures, importance(traces, arguments))
    machine.write(arguments.json, __file__, figures)


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Both, the part about cues last."""
    cues = one.pop("cues", {}) | other.pop("cues", {})
    return one | other | {"cues": cues}


def annotators() -> dict[str, Callable[[Any], Any]]:
    from mixprec.traces import annotators as known

    return {name: known.make(name, "paper") for name in ("classifier", "cues")}


def labels(traces: Sequence[Any]) -> dict[str, Any]:
    """Speed and agreement in characters of both annotators."""
    import span_agreement

    from mixprec.traces import spans

    truth = [spans.char_spans(trace, "paper") for trace in traces]
    figures: dict[str, Any] = {}
    for name, annotate in annotators().items():
        found, started = [], time.process_time()
        for trace in traces:
            found.append(annotate(trace))
        speed = len(traces) / (time.process_time() - started)
        counts = [span_agreement.count([one], [other]) for one, other in zip(truth, found, strict=True)]
        own = agreement(counts)
        if name == "classifier":
            figures = {"traces_per_second": speed, **own}
        else:
            figures |= {"traces_per_second_cues": speed, "cues": own}
    return figures


def written() -> dict[str, float]:
    """How well the classifier hears on text by those who wrote what it learns from."""
    from mixprec.traces.learned import training
    from mixprec.traces.learned.classifier import LABELS

    seen, unseen = training.parted(training.shipped())
    learner = training.fitted(seen)
    table = np.zeros((len(LABELS), len(LABELS)))
    for each in unseen:
        found = learner.behaviours(each.prompt, each.sentences)
        for sentence, true, other in zip(each.sentences, each.behaviours, found, strict=True):
            table[LABELS.index(true), LABELS.index(other)] += len(sentence.text)
    return {f"written_f1_{name}": float(value) for name, value in zip(LABELS, f1(table), strict=True)}


def agreement(counts: Sequence[Any]) -> dict[str, Any]:
    """Recall, precision and F1 by behaviour, with intervals. ``counts``: each trace's characters by pair."""
    from mixprec.traces.spans import ALL_BEHAVIOURS

    table = np.array([[[trace[a, b] for b in ALL_BEHAVIOURS] for a in ALL_BEHAVIOURS] for trace in counts], dtype=float)
    random = np.random.default_rng(0)
    drawn = random.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=RESAMPLES)
    whole, resampled = table.sum(0), np.einsum("bn,nij->bij", drawn, table)
    figures: dict[str, Any] = {}
    for kind, of in (("recall", recall), ("precision", precision), ("f1", f1)):
        for at, behaviour in enumerate(ALL_BEHAVIOURS):
            figures[f"{kind}_{behaviour}"] = float(of(whole)[at])
            figures[f"{kind}_{behaviour}_ci"] = bounds(of(resampled)[:, at])
    figures["agreement"] = float(np.trace(whole) / whole.sum())
    figures["characters"] = int(whole.sum())
    return figures


def recall(table: np.ndarray) -> np.ndarray:
    return np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(table.sum(-1), 1)


def precision(table: np.ndarray) -> np.ndarray:
    return np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(table.sum(-2), 1)


def f1(table: np.ndarray) -> np.ndarray:
    return 2 * np.diagonal(table, axis1=-2, axis2=-1) / np.maximum(table.sum(-1) + table.sum(-2), 1)


def bounds(values: np.ndarray) -> list[float]:
    return [float(bound) for bound in np.nanquantile(values, [0.025, 0.975])]


def importance(traces: Sequence[Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Spearman of importance from both annotators' spans with that from GPT-4o's."""
    from mixprec.core import artifacts
    from mixprec.importance.attribute import attribute
    from mixprec.models.model import Model
    from mixprec.traces import spans

    most = 1024 if arguments.quick else 4096
    chosen = spread(traces, 4 if arguments.quick else 30)
    loaded = Model("smollm2-135m-instruct").load()
    folders = {}
    sides = {"truth": lambda trace: spans.char_spans(trace, "paper"), **annotators()}
    for name, annotate in sides.items():
        annotated = [annotate(trace) for trace in chosen]
        # Spans are in the statistics' fingerprints, so other spans are attributed again.
        folders[name] = Path(arguments.work) / f"{'quick' if arguments.quick else 'full'}_{name}"
        identity = artifacts.fingerprint("smollm2-135m-instruct")
        attribute(loaded, annotated, folders[name], presets=["paper"], identity=identity, max_tokens=most, resamples=0)
    own, cues = correlations(loaded, folders["truth"], [folders["classifier"], folders["cues"]], len(chosen))
    return {
        **own,
        **halves(loaded, folders["truth"], len(chosen)),
        "importance_traces": len(chosen),
        "importance_max_tokens": most,
        "cues": cues,
    }


def halves(loaded: Any, folder: Path, traces: int) -> dict[str, Any]:
    """How alike two halves of the traces are, without another annotator: the noise in the correlations."""
    from mixprec.importance import agreement as rankings

    found = rankings.halves(loaded, folder, traces, "paper", RESAMPLES)["mean"]
    return {"halves_spearman": found["spearman"], "halves_spearman_range": found["spearman_range"]}


def spread(traces: Sequence[Any], per_dataset: int) -> list[Any]:
    """Traces at equal distances in the order of their lengths, of each benchmark."""
    by_dataset: dict[str, list[Any]] = {}
    for trace in traces:
        by_dataset.setdefault(trace.dataset, []).append(trace)
    chosen = []
    for found in by_dataset.values():
        ordered = sorted(found, key=lambda trace: len(trace.text))
        chosen += [ordered[(2 * i + 1) * len(ordered) // (2 * per_dataset)] for i in range(per_dataset)]
    return chosen


def correlations(loaded: Any, truth: Path, others: Sequence[Path], traces: int) -> list[dict[str, Any]]:
    """For each of the others the figures of Spearman's correlation with the truth, traces resampled together."""
    from mixprec.importance import agreement as rankings

    found = []
    for folder in others:
        result = rankings.compare(loaded, truth, folder, traces, "paper", RESAMPLES)
        parts = {"": result["mean"], **{f"_{name}": row for name, row in result["behaviours"].items()}}
        figures = {}
        for name, row in parts.items():
            figures[f"importance_spearman{name}"] = row["spearman"]
            figures[f"importance_spearman{name}_ci"] = row["spearman_ci"]
        found.append(figures)
    return found


if __name__ == "__main__":
    main()
