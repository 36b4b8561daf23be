"""Joint plans: what scores of single modules leave out is measured on whole plans, and exchanged where that helps."""

#: Raised when the same candidates and scores give other plans: those are made again then (tests/test_stage_rules.py).
RULES = 1
