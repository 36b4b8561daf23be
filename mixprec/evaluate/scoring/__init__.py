"""From an output to a verdict: correct, wrong, or no answer."""

from __future__ import annotations

from mixprec.evaluate.scoring.score import counting_unfinished, score
from mixprec.evaluate.scoring.verdict import Outcome, Place, Verdict

#: Version of the rules. Raise it with any change that can turn a verdict round: results are then scored again.
RULES = 5

__all__ = ["RULES", "Outcome", "Place", "Verdict", "counting_unfinished", "score"]
