"""Which devices have no float64, by their names alone."""

from __future__ import annotations

from mixprec.core.errors import UserError


def check_float64(device: str, what: str) -> None:
    """Raises UserError for a ``device`` that has no float64, in which ``what`` is computed."""
    if device.partition(":")[0] == "mps":
        raise UserError(
            f"device: {device}: {what} needs float64, which this device doesn't have; use cpu or cuda. "
            "Attribution, traces and benchmarks run on mps"
        )
