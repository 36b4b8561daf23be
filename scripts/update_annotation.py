"""Write how far offline annotators get into docs/spans.md. python scripts/update_annotation.py [--check]

The figures are those of benchmarks/results/annotation.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import generated

from mixprec.traces.spans import ALL_BEHAVIOURS
from mixprec.traces.store import BEHAVIOURS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "spans.md"
FIGURES = ROOT / "benchmarks" / "results" / "annotation.json"


def _measured(figures: Mapping[str, Any], key: str) -> str:
    """A figure with its interval, where it has one."""
    value, bounds = figures.get(key), figures.get(f"{key}_ci")
    if value is None:
        return "–"
    return f"{value:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")


def table() -> str:
    """A row for each behaviour: the classifier, and the cues beside it."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    cues = figures["cues"]
    lines = ["| behaviour | precision | recall | F1 | importance | F1 of cues | importance by cues |"]
    lines.append("|:--|--:|--:|--:|--:|--:|--:|")
    for behaviour in ALL_BEHAVIOURS:
        cells = [_measured(figures, f"{name}_{behaviour}") for name in ("precision", "recall", "f1")]
        cells.append(_measured(figures, f"importance_spearman_{behaviour}"))
        cells += [_measured(cues, f"f1_{behaviour}"), _measured(cues, f"importance_spearman_{behaviour}")]
        lines.append(f"| {behaviour} | {' | '.join(cells)} |")
    scored = " and ".join(_measured(each, "importance_spearman") for each in (figures, cues))
    lines += [
        "",
        f"{figures['agreement']:.2f} of {figures['characters']:,} characters agree, with cues {cues['agreement']:.2f}. "
        f"Over the {len(BEHAVIOURS)} scored behaviours, importance agrees by {scored}.",
    ]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/spans.md as the figures have it."""
    return generated.filled(PAGE, "annotation", table())


if __name__ == "__main__":
    generated.main(PAGE, page)
