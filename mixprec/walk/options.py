"""Defaults of the walk, which recipes and command lines show without loading anything."""

from __future__ import annotations

#: Memory for calibration states, and again for what a micro-batch leaves inside a block, in 10^9 bytes.
MEMORY_GB = 4.0
