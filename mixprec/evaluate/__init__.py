"""Evaluation: how far a compressed model is from the original, over all tokens and over each behaviour's spans."""
