"""From an output to a verdict: correct, wrong, or no answer."""

from __future__ import annotations

from mixprec.evaluate.scoring.score import counting_unfinished, score
from mixprec.evaluate.scoring.verdict import Outcome, Place, Verdict

__all__ = ["Outcome", "Place", "Verdict", "counting_unfinished", "score"]
