"""Predicted damage: what each module costs the model in each format, by gradients, by errors alone, or measured."""

#: Raised when the same candidates give other damages: those are made again then (tests/test_stage_rules.py).
RULES = 2
