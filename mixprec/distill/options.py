"""How a student is trained, without torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

#: Rates without ``rate``: of all weights, and of adapters, whose matrices start at 0.
FULL_RATE, LORA_RATE = 2e-5, 2e-4


class DistillOptions(BaseModel):
    """Training of a student on a teacher's traces."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    chat_template: bool = Field(False, description="prompts go in as the user's turn of the student's chat template")
    validation: int = Field(16, ge=1, description="traces held out, which decide what is kept; no prompt is in both")
    tokens: int | None = Field(None, ge=2, description="most tokens of a trace; default: the model's context")
    longer: Literal["refuse", "cut", "drop"] = Field("refuse", description="what is done with longer traces")
    packing: bool = Field(False, description="several traces in a row of `tokens` tokens; they don't see one another")
    epochs: int = Field(2, ge=1, description="how often each trace is seen")
    batch: int = Field(8, ge=1, description="rows of a step, on all processes together")
    at_once: int = Field(1, ge=1, description="rows that go through a device at once")
    rate: float | None = Field(None, gt=0, description=f"learning rate; default {FULL_RATE}, with lora {LORA_RATE}")
    warm_up: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    decay: float = Field(0.0, ge=0, description="AdamW's weight decay")
    lora: int = Field(0, ge=0, description="rank of adapters on all linear modules; 0: all weights are trained")
    lora_alpha: float | None = Field(None, gt=0, description="adapters count alpha / rank; default twice the rank")
    recompute: bool = Field(False, description="compute activations twice in place of keeping them")
    checks: int = Field(2, ge=1, description="how often an epoch is measured on the validation traces")
    patience: int = Field(3, ge=1, description="measurements without a gain after which it ends")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="type computed in; weights stay in float32. auto: bfloat16 where the processor has it"
    )
    seed: int = Field(0, description="draws the validation traces and the order")

    @property
    def learning_rate(self) -> float:
        """The rate that is taken."""
        return self.rate or (LORA_RATE if self.lora else FULL_RATE)
