"""Write the offline annotators' figures into docs/spans.md. python scripts/update_annotation.py [--check]

They are those of benchmarks/results/annotation.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "spans.md"
FIGURES = ROOT / "benchmarks" / "results" / "annotation.json"
SCORED = ("backtracking", "uncertainty_estimation", "example_testing", "adding_knowledge")
#: What the issue of the classifier asks of every scored behaviour.
RECALL, PRECISION, SPEARMAN = 0.6, 0.5, 0.9
#: arXiv 2504.02010, Table 6: the share of GPT-4o's sections (temperature 1) that a person finds right.
RATED = dict(zip(SCORED, (0.90, 0.78, 0.90, 0.86), strict=True))


def table() -> str:
    """The table by behaviour, and what it says."""
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    rows = ["| behaviour | precision | recall | F1 | F1 of cues | rated right | importance |"]
    rows.append("|:--|--:|--:|--:|--:|--:|--:|")
    for name in (*SCORED, "initializing", "deduction"):
        shares = [told(found, f"{kind}_{name}") for kind in ("precision", "recall", "f1")]
        rated = f"{RATED[name]:.2f}" if name in RATED else "–"
        rho = told(found, key) if (key := f"importance_spearman_{name}") in found else "–"
        rows.append("| " + " | ".join([name, *shares, told(found["cues"], f"f1_{name}"), rated, rho]) + " |")
    return "\n".join([*rows, "", *said(found)]) + "\n"


def told(figures: dict[str, Any], key: str) -> str:
    """A figure with its interval."""
    low, high = figures[f"{key}_ci"]
    return f"{figures[key]:.2f} ({low:.2f} to {high:.2f})"


def said(found: dict[str, Any]) -> list[str]:
    """Sentences about the table."""
    good = [name for name in SCORED if found[f"recall_{name}"] >= RECALL and found[f"precision_{name}"] >= PRECISION]
    written = [found[f"written_f1_{name}"] for name in SCORED]
    return [
        f"{found['agreement']:.2f} of the characters agree, with cues {found['cues']['agreement']:.2f}; it annotates "
        f"{found['traces_per_second']:.0f} traces in a second of one core, cues {found['traces_per_second_cues']:.0f}.",
        f"The aim is a recall of {RECALL} at a precision of {PRECISION} for each of the four scored behaviours. It is "
        f"reached for {', '.join(good) if good else 'none'}.",
        "On a fifth of the text that it learns from, with its writers' labels, one that learned from the rest has an "
        f"F1 of {min(written):.2f} to {max(written):.2f} for these four.",
        *ranked(found),
    ]


def ranked(found: dict[str, Any]) -> list[str]:
    """What is said about importance, where it was measured."""
    if "importance_spearman" not in found:
        return []
    low, high = found["halves_spearman_range"]
    return [
        f"Importance over the four agrees by {told(found, 'importance_spearman')}, with cues by "
        f"{told(found['cues'], 'importance_spearman')}; the aim is {SPEARMAN}. Two halves of the same "
        f"{found['importance_traces']} traces, both with GPT-4o's spans, agree by {found['halves_spearman']:.2f} "
        f"(95% of the splits: {low:.2f} to {high:.2f}): with so few, other traces move the ranking about as "
        "far as another annotator does.",
    ]


def page() -> str:
    """docs/spans.md as the figures have it."""
    return generated.filled(PAGE, "annotation", table())


if __name__ == "__main__":
    generated.main(PAGE, page)
