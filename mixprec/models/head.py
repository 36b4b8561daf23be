"""The output head of a model alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

#: Keys of configurations that logits are multiplied with, and divided by.
_TIMES: Final = ("logit_scale", "lm_head_multiplier")
_OVER: Final = ("logits_scaling",)


@dataclass(frozen=True)
class Head:
    """The output head alone: next-token logits (..., vocabulary) of final hidden states (..., hidden).

    ``scale``: what the projection's outputs are multiplied with (Cohere, Granite). ``softcap``: as Gemma's.
    """

    projection: nn.Module
    softcap: float | None
    scale: float = 1.0

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a loaded model."""
        said = vars(model.config.get_text_config(decoder=True))
        scale = math.prod(float(said.get(key) or 1.0) for key in _TIMES)
        scale /= math.prod(float(said.get(key) or 1.0) for key in _OVER)
        return cls(model.get_output_embeddings(), said.get("final_logit_softcapping"), scale)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.cap(self.projection(hidden))

    def apart(self) -> Head:
        """The head with weights of its own, for when the model goes: a weight that was read from a file keeps all of
        the file in memory."""
        return replace(self, projection=copy.deepcopy(self.projection))

    def fixed(self) -> Head:
        """The head with the weights that it has now, whatever its module gets later."""
        projection = copy.copy(self.projection)
        projection.__dict__["_parameters"] = dict(self.projection._parameters)
        return replace(self, projection=projection)

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """Logits of the projection's output."""
        scores = scores if self.scale == 1.0 else scores * self.scale
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap
