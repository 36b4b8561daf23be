"""How the methods solve: one set of settings for a run, the same for every module that they concern."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from mixprec.models.labels import COMPARED
from mixprec.numerics.products import Products


class GuidedSpec(BaseModel):
    """Errors of outputs count as much as a loss minds them: GuidedQuant (arXiv 2505.07004)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: Literal["fisher", "loss"] = Field(
        "fisher", description="fisher: the KL to the original's own predictions; loss: cross-entropy of the text"
    )
    groups: int = Field(1, ge=1, description="of a linear's outputs that have a Hessian each")
    draws: int = Field(1, ge=1, description="with fisher: random losses per sample, averaged")
    power: float = Field(0.5, gt=0, le=1, description="of tokens' weights; 1: as they are, below 1 they differ less")
    seed: int = Field(0, description="draws the random losses")


class ExpertOptions(BaseModel):
    """Which tokens the experts of a mixture are solved for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Literal["routed", "pooled", "all"] = Field(
        "pooled",
        description="routed: those that the router sends to each; pooled: all of the layer's for experts that get "
        "fewer than least; all: all of the layer's for every expert",
    )
    least: int = Field(128, ge=1, description="tokens below which an expert counts as starved")


class UpdatesFile(BaseModel):
    """Importance of input channels from what fine-tuning changed; ``sha256`` alone is in stamps and cards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(exclude=True, description="what mixprec.updates wrote")
    sha256: str = Field(description="of the file")


class SolveOptions(BaseModel):
    """Settings of the methods; what none of a plan's methods uses has no effect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    damping: float = Field(
        0.03, gt=0, description="gptq, gptaq, sparsegpt: added to the Hessian's diagonal, relative to its mean"
    )
    act_order: bool = Field(True, description="gptq, gptaq: columns of large inputs first, groups staying together")
    grid_search: bool = Field(True, description="gptq, gptaq: shrink each group's grid where that costs less")
    products: Products = Field(
        "model",
        description="type in which blocks and the sums over their inputs multiply; bfloat16 is faster than float32 "
        "where the processor has instructions for it; solves are in float32 in any case",
    )
    descent: int = Field(
        0, ge=0, description="gptq, gptaq: rounds of coordinate descent on codes and scales behind the pass"
    )
    refine: int = Field(5, ge=0, description="sparsegpt: steps that move what is left all at once; 0: the paper's")
    clip: bool | Literal["released"] = Field(
        True, description="awq: clip each group where that lowers the output error; released: all but q and k"
    )
    guided: GuidedSpec | None = Field(
        None, description="gptq, gptaq, sparsegpt: weigh tokens by a loss's gradients at each linear's outputs"
    )

    updates: UpdatesFile | None = Field(
        None, description="awq: scales from channels' importance by fine-tuning updates, not from inputs' sizes"
    )

    def clips(self, kind: str) -> bool:
        """Whether AWQ clips modules of ``kind``. Released AWQ leaves q and k out."""
        return self.clip is True or (self.clip == "released" and kind not in COMPARED)

    experts: ExpertOptions = Field(ExpertOptions(), description="which tokens the experts of a mixture are solved for")

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Cards and stamps of what has none of these stay as they were before there were any."""
        found: dict[str, Any] = handler(self)
        if found.get("guided") is None:
            found.pop("guided", None)
        if self.experts == ExpertOptions():
            found.pop("experts", None)
        if not self.descent:
            found.pop("descent", None)
        if self.products == "model":
            found.pop("products", None)
        if self.updates is None:
            found.pop("updates", None)
        return found
