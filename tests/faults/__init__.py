"""Faults on purpose: kills, full disks, flipped bits and strange files, and what becomes of the work that they hit."""
