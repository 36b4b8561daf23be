"""The output head of a model alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Head:
    """The output head alone: next-token logits (..., vocabulary) of final hidden states (..., hidden)."""

    projection: nn.Module
    softcap: float | None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a loaded model, soft-capped where Gemma's is."""
        return cls(model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None))

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.cap(self.projection(hidden))

    def apart(self) -> Head:
        """The head with weights of its own, for when the model goes: a weight that was read from a file keeps all of
        the file in memory."""
        return Head(copy.deepcopy(self.projection), self.softcap)

    def fixed(self) -> Head:
        """The head with the weights that it has now, whatever its module gets later."""
        projection = copy.copy(self.projection)
        projection.__dict__["_parameters"] = dict(self.projection._parameters)
        return Head(projection, self.softcap)

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """Logits of the projection's output."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap
