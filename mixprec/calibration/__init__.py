"""Calibration data: tokens from text, hub datasets and traces that methods look at, and how much each token counts."""
