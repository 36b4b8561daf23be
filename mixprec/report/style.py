"""Colours and fonts of the still figures, and saving them so that the same input gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from mixprec.core.publish import atomic_path


class Theme(NamedTuple):
    """Colours of a figure; the report's page uses the same ones."""

    background: str
    ink: str
    muted: str
    line: str
    accent: str


LIGHT = Theme("#ffffff", "#1c2026", "#656d78", "#e3e6ea", "#2f6f8f")
DARK = Theme("#1a1d22", "#e4e6ea", "#9aa2ad", "#343a43", "#6db5d6")

# No date, no tool version: bytes depend on the data alone.
_METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def rc(theme: Theme) -> dict[str, Any]:
    """Matplotlib settings for building and saving a figure."""
    return {
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
        "font.size": 9.5,
        "axes.titlesize": 11,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": "none",
        "text.color": theme.ink,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.line,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "grid.color": theme.line,
        "text.parse_math": False,  # a variant's name may hold dollar signs
        "svg.hashsalt": "mixprec",
    }


def render(figure: Figure, kind: str, dpi: int = 170) -> bytes:
    """A figure as ``png`` or ``svg`` bytes, the same ones for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "mixprec", "text.parse_math": False}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=_METADATA[kind], facecolor=figure.get_facecolor())
    return buffer.getvalue()


def save_figure(figure: Figure, stem: Path, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write ``stem``.png and ``stem``.svg atomically; gives their paths.

    Raises UserError where they can't be written.
    """
    paths = []
    for kind in kinds:
        path = stem.with_name(f"{stem.name}.{kind}")
        with atomic_path(path) as temporary:
            temporary.write_bytes(render(figure, kind))
        paths.append(path)
    return paths
