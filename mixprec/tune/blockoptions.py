"""What recipes, command lines and functions say of tuning block by block, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TuneBlocks(BaseModel):
    """``compress.tune_blocks`` of a recipe: tuning of each block's codes and scales by the block's output."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(30, ge=0, description="steps in each block; 0 tunes nothing")
    batch: int = Field(4, ge=1, description="samples of a step")
    codes: bool = Field(True, description="round weights of integer formats otherwise than the method did")
    scales: bool = Field(True, description="scales, zero points, offsets and code books")
    reach: float = Field(0.1, gt=0, le=1, description="how far a weight may move in all, in steps of its grid")
    rate: float = Field(2e-3, gt=0, lt=1, description="first step of scales, relative to their size")
    validation: int = Field(4, ge=1, description="samples of the calibration that only decide when to stop")
    checks: int = Field(4, ge=1, description="how often a block is measured on them")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="type of the products, sums are in float32; auto: bfloat16 where the processor has instructions "
        "for it, else float32",
    )
    seed: int = Field(0, description="draws the samples of steps and of validation")

    def too_few(self, samples: int) -> str:
        """What is wrong where there are so many calibration samples; empty where nothing is."""
        if samples > self.validation:
            return ""
        return (
            f"tune_blocks.validation: {self.validation} of {samples} calibration samples leave none to tune on; lower "
            "it, or give more samples"
        )

    @model_validator(mode="after")
    def _something(self) -> TuneBlocks:
        if not (self.codes or self.scales):
            raise ValueError("nothing to tune; leave codes or scales: true, or leave tune_blocks out")
        return self
