"""How many words of 32 bits packed codes take."""

from __future__ import annotations

WORD = 32


def words(count: int, bits: int) -> int:
    """Words of 32 bits that ``count`` codes take."""
    return -(-count * bits // WORD)
