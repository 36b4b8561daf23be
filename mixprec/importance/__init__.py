"""Importance: steering vectors and attribution patching for every linear module (arXiv 2504.02010 §2.2).

options -> windows -> engine (one pass per trace, statistics on disk) -> scores (steering vectors, importance).
"""

#: Raised when the same model and spans give other scores: those are made again then (tests/test_stage_rules.py).
RULES = 1
