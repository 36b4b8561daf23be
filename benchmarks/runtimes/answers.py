"""What every script beside this one does with its job; standard library alone, since each has its own environment."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_answers(job: dict[str, Any], look_at: Callable[[str, dict[str, Any]], dict[str, Any]], results: Path) -> None:
    """Folder of each checkpoint of the job -> what ``look_at`` says of it, or ``error``, what broke it."""
    answers = {}
    for folder in job["checkpoints"]:
        try:
            answers[folder] = look_at(folder, job)
        except (Exception, SystemExit) as problem:  # vLLM exits
            answers[folder] = {"error": f"{type(problem).__name__}: {str(problem)[-1500:]}"}
        results.write_text(json.dumps(answers, indent=2))
        gc.collect()
