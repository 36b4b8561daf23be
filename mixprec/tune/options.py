"""What recipes, command lines and functions say of tuning, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mixprec.calibration.spec import CalibrationSpec


class TuneOptions(BaseModel):
    """Tuning of a whole compressed model by the original's predictions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scales: bool = Field(True, description="scales, offsets and code books")
    zeros: bool = Field(False, description="zero points of asymmetric formats")
    norms: bool = Field(True, description="weights of norms")
    biases: bool = Field(False, description="biases, of models that have some")
    epochs: int = Field(2, ge=1, description="how often each sample is seen")
    batch: int = Field(1, ge=1, description="samples of a step")
    rate: float = Field(2e-3, gt=0, lt=1, description="step of scales and zero points, relative to their size")
    norm_rate: float = Field(1e-3, gt=0, lt=1, description="step of norms and biases, relative to their mean")
    checks: int = Field(2, ge=1, description="how often an epoch is measured on the validation samples")
    patience: int = Field(3, ge=1, description="measurements without a gain after which it ends")
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = Field(
        "auto", description="type computed in; auto: bfloat16 where the processor has instructions for it, else float32"
    )
    seed: int = Field(0, description="order of the samples")

    @model_validator(mode="after")
    def _something(self) -> TuneOptions:
        if not (self.scales or self.zeros or self.norms or self.biases):
            raise ValueError("nothing to tune; leave scales: true, or set norms, biases or zeros to true")
        return self


class TuneSpec(TuneOptions):
    """``compress.tune`` of a recipe: how, and on which samples."""

    samples: int | None = Field(None, ge=1, description="samples it sees; default: those of compress.calibration")
    validation: int = Field(8, ge=2, description="further samples, which decide when to stop; nothing else sees them")
    calibration: CalibrationSpec | None = Field(None, description="other samples than those of compress.calibration")

    @property
    def options(self) -> TuneOptions:
        """How, alone."""
        return TuneOptions.model_validate(self.model_dump(include=set(TuneOptions.model_fields)))
