"""What each of several processes does in tests/compress/test_several_processes.py: compress models, case by case.

python together.py FOLDER NAME...
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

import torch
from calibrated import calibrating

from mixprec.compress.options import GuidedSpec, SolveOptions
from mixprec.compress.stream import compress
from mixprec.compress.walk import Walk
from mixprec.core import processes
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model
from mixprec.plan.rules import PlanSpec, build_plan

#: Name -> model, method, default format, sparsity, options.
CASES: Final[dict[str, dict[str, Any]]] = {
    "gptq": {"method": "gptq", "default": "w3g16"},
    "weighted": {"method": "gptq", "default": "w4g16", "weights": True},
    "gptaq": {"method": "gptaq", "default": "w3g16"},
    "awq": {"method": "awq", "default": "w3g16"},
    "rtn": {"method": "rtn", "default": "w3g16"},
    "sparse": {"method": "sparsegpt", "default": "keep", "sparsity": "2:4"},
    "guided": {"method": "gptq", "default": "w3g16", "guided": True},
    "experts": {"model": "mixture", "method": "gptq", "default": "w3g16"},
    "killed": {"method": "gptq", "default": "w3g16"},
}


def make(folder: Path, name: str, out: Path) -> None:
    """Compress the case's model to ``out``."""
    case = CASES[name]
    where = folder / case.get("model", "dense")
    spec = PlanSpec.model_validate({"default": case["default"], "sparsity": case.get("sparsity")})
    plan = build_plan(spec, decoder_of(load_config(str(where))), str(where), case["method"])
    weights = torch.linspace(0.5, 2.0, 6 * 20).view(6, 20) if case.get("weights") else None
    calibration = None if case["method"] == "rtn" else calibrating(weights=weights)
    options = SolveOptions(guided=GuidedSpec() if case.get("guided") else None)
    reports = compress(Model(str(where)), plan, out, calibration=calibration, options=options, memory_gb=1e-5)
    if processes.is_main():
        told = {address: report._asdict() for address, report in reports.items()}
        (out.parent / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")


def _die_behind_the_first_block() -> None:
    save = Walk._save

    def saved(self: Walk, *given: Any) -> None:
        save(self, *given)
        if processes.is_main():
            os._exit(9)

    Walk._save = saved  # type: ignore[method-assign]


if __name__ == "__main__":
    root, *names = sys.argv[1:]
    processes.join("cpu")
    if os.environ.get("DIE"):
        _die_behind_the_first_block()
    for each in names:
        make(Path(root), each, Path(root) / f"of{processes.count()}" / each)
    processes.leave()
