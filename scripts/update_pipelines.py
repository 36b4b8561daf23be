"""Write the table of whole pipelines into docs/tuning.md. python scripts/update_pipelines.py [--check]

Its figures are those of benchmarks/results/pareto.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tuning.md"
FIGURES = ROOT / "benchmarks" / "results" / "pareto.json"
#: Key of the figures -> what it is, and what was aimed at.
ROWS = {
    "kl_ratio_vs_best_pipeline_325": ("ours over the best peer's, 3.25 bits", "0.75"),
    "kl_ratio_vs_best_pipeline_350": ("at 3.5 bits", "0.75"),
    "kl_ratio_vs_best_pipeline_400": ("at 4.0 bits", "0.75"),
    "kl_ratio_equal_file": ("GGUF, embedding planned too, over the best peer's file of no more bytes", "0.5"),
    "file_ratio_llamacpp": ("our GGUF file over llama.cpp's of no fewer bytes, worst of its five mixtures", "0.85"),
    "tune_gain": ("tuning, w3g64 by GPTQ", "0.7"),
    "tune_gain_350": ("tuning, the plan of 3.5 bits", "0.8"),
    "tune_overfit": ("what tuning gains on calibration samples, over that on other text", ""),
    "gap_recovered": ("damage of w3g64 taken back at 3.5 bits", "0.65"),
    "guided_gain": ("guided GPTQ over GPTQ, w3g64", ""),
    "behaviour_gain": ("KL on backtracking where its tokens count 8 times", ""),
    "behaviour_cost": ("the same, on all tokens", ""),
    "limit_ratio": ("forward pass and second moments, share of GPTQ", "0.5"),
    "time_vs_autoround": ("our CPU seconds at less KL than AutoRound's", "0.5"),
    "cpu_speedup_gptq_vs_gptqmodel": ("GPTQModel's CPU seconds for GPTQ over ours", "4"),
    "cpu_speedup_gptq_vs_llmcompressor": ("llm-compressor's", "4"),
}


def measured(figures: dict[str, Any], key: str) -> str:
    """A figure with its interval."""
    if figures[key] is None:
        return "not measured"
    bounds = figures.get(f"{key}_ci")
    return f"{figures[key]:.2f}" + (f" [{bounds[0]:.2f}, {bounds[1]:.2f}]" if bounds else "")


def table() -> str:
    """One row for each figure."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    rows = [f"| {what} | {aim} | {measured(figures, key)} |" for key, (what, aim) in ROWS.items()]
    return "\n".join(["| figure | aim | measured |", "|---|--:|--:|", *rows]) + "\n"


def page() -> str:
    """docs/tuning.md as the figures have it."""
    return generated.filled(PAGE, "pipelines", table())


if __name__ == "__main__":
    generated.main(PAGE, page)
