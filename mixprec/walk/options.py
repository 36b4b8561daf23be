"""What recipes, command lines and estimates say of the walk without loading anything."""

from __future__ import annotations

from mixprec.models.arch.family import Sizes

#: Memory for calibration states, and again for what a micro-batch leaves inside a block, in 10^9 bytes.
MEMORY_GB = 4.0


def numbers_inside(sizes: Sizes) -> int:
    """About how many numbers a token leaves inside a block at its widest place, none of them freed."""
    return 4 * (sizes.hidden + sizes.intermediate)
