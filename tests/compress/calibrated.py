"""Calibration tokens for tiny models, and what linears of a whole model are fed with on them."""

from __future__ import annotations

from typing import Any

import torch

from mixprec.calibration.data import Calibration
from mixprec.core import artifacts


def calibrating(samples: int = 6, tokens: int = 20, weights: torch.Tensor | None = None) -> Calibration:
    ids = torch.randint(2, 64, (samples, tokens), generator=torch.Generator().manual_seed(1))
    return Calibration(ids, weights, {"made": "up"}, artifacts.fingerprint(ids.tolist()))


def inputs_of(model: Any, address: str, calibration: Calibration) -> torch.Tensor:
    """What the linear is fed with (tokens, in), by a pass through the whole model."""
    found: list[torch.Tensor] = []
    handle = model.get_submodule(address).register_forward_pre_hook(lambda _m, x: found.append(x[0]))
    with torch.no_grad():
        model(calibration.tokens, use_cache=False)
    handle.remove()
    return found[0].reshape(-1, found[0].shape[-1]).double()
