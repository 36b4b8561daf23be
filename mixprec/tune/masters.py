"""A number that moves while it is tuned: its master, in float32, and what would be stored of it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mixprec.numerics.tunable import Number

Kind = Literal["scales", "zeros", "norms", "biases"]


class Master(nn.Module):
    """Numbers that may move: ``step`` (their shape, float32), in units of what each is measured in, from the start."""

    def __init__(self, number: Number, kind: Kind) -> None:
        super().__init__()
        self.number, self.kind = number, kind
        self._start = number.start.float()
        self.step = nn.Parameter(torch.zeros_like(self._start))

    def stored(self) -> Tensor:
        """The numbers as they are stored, in float32; differentiable in ``step``."""
        return self.number.stored(self._start + self.step * self.number.unit)
