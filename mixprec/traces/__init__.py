"""Traces: a model's prompt and reasoning, annotated with behaviours, mapped to spans of characters and tokens."""

#: Raised when the same traces give other spans: those are made again then (tests/test_stage_rules.py).
RULES = 1
