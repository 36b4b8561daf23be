"""Compression: one file per method (pure functions on tensors), and the engines that apply a plan."""

#: Raised when a method gives other weights for the same inputs: those are made again then (tests/test_stage_rules.py).
RULES = 2
