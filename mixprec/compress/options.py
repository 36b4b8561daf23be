"""How the methods solve: one set of settings for a run, the same for every module that they concern."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mixprec.models.labels import COMPARED


class SolveOptions(BaseModel):
    """Settings of the methods; what none of a plan's methods uses has no effect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    damping: float = Field(
        0.03, gt=0, description="gptq, gptaq, sparsegpt: added to the Hessian's diagonal, relative to its mean"
    )
    act_order: bool = Field(True, description="gptq, gptaq: columns of large inputs first, groups staying together")
    grid_search: bool = Field(True, description="gptq, gptaq: shrink each group's grid where that costs less")
    refine: int = Field(5, ge=0, description="sparsegpt: steps that move what is left all at once; 0: the paper's")
    clip: bool | Literal["released"] = Field(
        True, description="awq: clip each group where that lowers the output error; released: all but q and k"
    )

    def clips(self, kind: str) -> bool:
        """Whether AWQ clips modules of ``kind``. Released AWQ leaves q and k out."""
        return self.clip is True or (self.clip == "released" and kind not in COMPARED)
