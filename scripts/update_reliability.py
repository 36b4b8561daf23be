"""Write the figures of reliability into docs/reliability.md. python scripts/update_reliability.py [--check]

They are those of benchmarks/results/reliability.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reliability.md"
FIGURES = ROOT / "benchmarks" / "results" / "reliability.json"

#: What was tried, the keys of how often and of how often it was good, and what good means.
_TRIED = (
    ("kills by SIGKILL", "kills", "resumed_identical", "the second run ended with the same bytes"),
    ("SIGTERM and SIGINT", "signals", "signals_identical", "said so, and ended with the same bytes later"),
    ("full disks", "full_disks", "full_disks_identical", "said so, and ended with the same bytes later"),
    ("artifacts damaged", "corruptions_tried", "corruptions_detected", "refused by name, or the same content"),
)


def tried(figures: dict[str, Any]) -> list[str]:
    """A row for each kind of fault."""
    found = ["| | tried | good | good means |", "|---|--:|--:|---|"]
    for what, count, good, meaning in _TRIED:
        found.append(f"| {what} | {number(figures.get(count))} | {number(figures.get(good))} | {meaning} |")
    cases, wrong = figures.get("fuzz_cases"), figures.get("fuzz_failures")
    right = None if cases is None or wrong is None else cases - wrong
    found.append(
        f"| made-up files, texts and answers | {number(cases)} | {number(right)} | a value or an error in one "
        "sentence, in bounded time and memory |"
    )
    return found


def number(value: int | None) -> str:
    """A count with separators."""
    return "not measured" if value is None else f"{value:,}"


def memory(figures: dict[str, Any]) -> list[str]:
    """A row for each stage, and what hashing costs."""
    peaks, measured = figures.get("memory_peaks") or {}, figures.get("memory_measured_mb") or {}
    if not peaks:
        return ["Memory: not measured."]
    worst = 100 * figures["memory_prediction_error"]
    found = [f"Peak memory of SmolLM2-135M's stages against `mixprec explain`, at most {worst:.0f}% apart:", ""]
    found += ["| stage | measured, MB | measured / predicted |", "|---|--:|--:|"]
    found += [f"| {name} | {measured[name]:,} | {ratio:.2f} |" for name, ratio in peaks.items()]
    overhead = figures.get("overhead")
    if overhead is not None:
        found += ["", f"Hashing takes {100 * (overhead - 1):.1f}% of the CPU time of a run that rounds and evaluates."]
    return found


def table() -> str:
    """All figures."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    return "\n".join([*tried(figures), "", *memory(figures)]) + "\n"


def page() -> str:
    """docs/reliability.md as the figures have it."""
    return generated.filled(PAGE, "reliability", table())


if __name__ == "__main__":
    generated.main(PAGE, page)
