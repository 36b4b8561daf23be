"""Write the figures of distillation into docs/distillation.md. python scripts/update_distillation.py [WORK] [--check]

They are those of benchmarks/results/distillation.json. With the benchmark's work folder the picture of the shift is
copied too.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "distillation.md"
FIGURES = ROOT / "benchmarks" / "results" / "distillation.json"
PICTURE = ROOT / "docs" / "images" / "distillation_shift.png"


def rows(figures: dict[str, Any]) -> list[str]:
    """The last up projection and the shift, a row for each behaviour."""
    last = figures["last_up"]
    found = ["| behaviour | `last_up`: rank of 210 | share of importance | gained, points | moved in all | Spearman |"]
    found.append("|---|--:|--:|--:|--:|--:|")
    for name in figures["moved"]:
        each = last[name]
        low, high = (100 * bound for bound in last[f"gain_{name}_ci"])
        shares = f"{100 * each['relative_base']:.2f}% → {100 * each['relative_distilled']:.2f}%"
        gain = f"{100 * last[f'gain_{name}']:+.2f} [{low:+.2f}, {high:+.2f}]"
        moved, rho = figures["moved"][name], figures["spearman"][name]
        words = name.replace("_", " ")
        ranks = f"{each['rank_base']} → {each['rank_distilled']}"
        found.append(f"| {words} | {ranks} | {shares} | {gain} | {100 * moved:.0f}% | {rho:.2f} |")
    return found


def table() -> str:
    """What was trained, the curve, and the shift."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    told = (
        f"{figures['train_traces']} traces, {figures['train_tokens']:,} tokens, {figures['steps']} steps, "
        f"{figures['train_tokens_per_second']:.0f} training tokens per second on one thread; importance on "
        f"{figures['importance_traces']} other traces. Loss in nats per token that the teacher wrote:"
    )
    return "\n".join([told, "", figures["training_loss"].strip(), "", *rows(figures)]) + "\n"


def page() -> str:
    """docs/distillation.md as the figures have it."""
    return generated.filled(PAGE, "distillation", table())


if __name__ == "__main__":
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    if folders:
        shutil.copyfile(Path(folders[0]) / "shift_net" / "shift.png", PICTURE)
    generated.main(PAGE, page)
