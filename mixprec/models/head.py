"""The output head of a model alone."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from mixprec.core.errors import UserError

#: Keys of configurations that logits are multiplied with, and divided by.
_TIMES: Final = ("logit_scale", "lm_head_multiplier")
_OVER: Final = ("logits_scaling",)
#: What caps them softly.
_CAPS: Final = ("final_logit_softcapping", "logits_soft_cap")


def _may_change_logits(key: str, value: object) -> bool:
    """Whether a key of a configuration speaks of the head's outputs, and isn't one that is known here."""
    of_head = ("logit" in key or "lm_head" in key) and not any(word in key for word in ("router", "attn", "attention"))
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and value not in (0, 1)
    return of_head and is_number and key not in (*_TIMES, *_OVER, *_CAPS)


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
        """The head of a loaded model. Raises UserError for keys of its configuration that may change logits, unknown
        here."""
        said = vars(model.config.get_text_config(decoder=True))
        unknown = [key for key, value in said.items() if _may_change_logits(key, value)]
        if unknown:
            raise UserError(
                f"config.json: {unknown[0]}: {said[unknown[0]]}: what it does to logits is not known here; known are "
                f"{', '.join((*_TIMES, *_OVER, *_CAPS))}"
            )
        scale = math.prod(float(said.get(key) or 1.0) for key in _TIMES)
        scale /= math.prod(float(said.get(key) or 1.0) for key in _OVER)
        return cls(model.get_output_embeddings(), next((said[key] for key in _CAPS if said.get(key)), None), scale)

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
