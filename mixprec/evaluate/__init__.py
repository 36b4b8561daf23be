"""Evaluation: how far a compressed model is from the original, over all tokens and over each behaviour's spans."""

#: Raised when the same models give other figures: those are made again then (tests/test_stage_rules.py).
RULES = 1
