"""Traces: a model's prompt and reasoning, annotated with behaviours, mapped to spans of characters and tokens."""
