"""Compression: one file per method (pure functions on tensors), and the engines that apply a plan."""
