"""Write what calibration texts do into docs/calibration.md. python scripts/update_calibration.py [--check]

The figures are those of benchmarks/results/calibration_text.json.
"""

from __future__ import annotations

import json
from pathlib import Path

import generated

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "calibration.md"
FIGURES = ROOT / "benchmarks" / "results" / "calibration_text.json"


def table() -> str:
    """KL by method, calibration and held-out text."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    told = (
        f"{figures['calibration_tokens']:,} calibration tokens, {figures['draws']} draws; held out are "
        f"{figures['passages']} passages of {figures['passage_tokens']} tokens of each kind. In brackets: KL over that "
        "of the model calibrated on plain text, with its 95% interval over passages and draws."
    )
    return "\n".join([told, "", figures["table"].strip()]) + "\n"


def page() -> str:
    """docs/calibration.md as the figures have it."""
    return generated.filled(PAGE, "texts", table())


if __name__ == "__main__":
    generated.main(PAGE, page)
