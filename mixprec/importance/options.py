"""What is computed, where the paper's formulas and the released code differ (docs/importance.md has the table)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Preset = Literal["paper", "released"]
PRESETS: tuple[Preset, ...] = ("paper", "released")
#: Bootstrap resamples for intervals, unless told otherwise.
RESAMPLES = 1000
#: What streamed traces that sweep together may keep in memory, in 10^9 bytes.
SWEEP_GB = 4.0


class AttributionOptions(BaseModel):
    """One way to reduce gradients to an importance. ``of(preset)`` gives the two that have a name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    absolute: Literal["outside", "inside"] = Field(
        "outside", description="absolute value of the sum over spans, or of every span's product"
    )
    divisor: Literal["traces", "spans"] = Field("traces", description="what the sum over spans is divided by")
    tokens: Literal["mean", "sum"] = Field("mean", description="gradient over a span's positions: mean or sum")
    preceding: int = Field(5, ge=0, description="preceding tokens that belong to a span")
    preceding_in_gradient: bool = Field(True, description="they count in loss and gradient, not in the means only")
    drop_last: bool = Field(False, description="leave out each span's last token, as the released code does")
    wrap_negative: bool = Field(False, description="positions before the first token wrap around to the trace's end")
    alias_means: bool = Field(False, description="all behaviours share one sum of activation means")

    @classmethod
    def of(cls, preset: Preset) -> AttributionOptions:
        """The formulas of the paper, or what the released code computes."""
        if preset == "paper":
            return cls()
        return cls(
            absolute="inside",
            divisor="spans",
            preceding_in_gradient=False,
            drop_last=True,
            wrap_negative=True,
            alias_means=True,
        )
