"""One weight whose codes and scales move: positions on its grid that decide about rounding, and masters of its scales.

Codes (SignSGD, AutoRound, arXiv 2309.05516, eq. 3 to 5): a weight is w = s · clamp(round(r)), r its position on the
grid in whole and broken steps. The gradient passes through the rounding as if it were not, and each step moves r by its
sign. AutoRound starts from the original weight, r = w / s. Here r starts where the method rounded: GPTQ rounds weights
which it has compensated for the errors before them. So the codes are the method's at first, and those change early that
it rounded by a hair. From the original weight, which a compensated code may be steps away from, the first changes undo
the compensation; from r = code none changes before half of a step is gone.

Scales and what else a format stores (numerics.tunable): Adam on changes relative to their size, rounded to the stored
type inside the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixprec.numerics.formats import AnyFormat, Format
from mixprec.numerics.groupwise import Quantized, per_column
from mixprec.numerics.storage import AnyQuantized
from mixprec.numerics.tunable import TUNABLE
from mixprec.tune.masters import Master

#: Decays of Adam's means of gradients and of their squares: short, as there are few steps.
_BETAS = (0.9, 0.95)
_EPS = 1e-12


class Rounding:
    """A weight (out, in) on its way from ``start``, in a ``format`` of TUNABLE.

    ``rests`` (out, in): what the method's rounding took from each weight, in the weight's units: then the codes of
    grids of integers move, but where ``fixed`` (out, in) is true. ``scales``: the other stored numbers move, but zero
    points: they would take a whole group along by a step.
    """

    def __init__(
        self,
        start: AnyQuantized,
        format: AnyFormat,
        *,
        rests: Tensor | None = None,
        fixed: Tensor | None = None,
        scales: bool = True,
    ) -> None:
        self._start, self._format, self._kind = start, format, TUNABLE[type(format)]
        every = self._kind.numbers(start, format)
        moving = {name: number for name, number in every.items() if scales and name != "zeros"}
        self._masters = {name: Master(number, "scales") for name, number in moving.items()}
        self._still = {name: number.start for name, number in every.items() if name not in moving}
        steps = [master.step for master in self._masters.values()]
        self._adam = torch.optim.Adam(steps, betas=_BETAS, eps=_EPS) if steps else None
        self._positions: Tensor | None = None
        if rests is not None and isinstance(start, Quantized) and isinstance(format, Format):
            self._positions, self._fixed = _positions(start, format, rests), fixed

    @property
    def moves(self) -> bool:
        """Whether anything does."""
        return bool(self._masters) or self._positions is not None

    @torch.no_grad()
    def quantized(self) -> AnyQuantized:
        """What would be stored."""
        numbers = {name: each.stored().to(each.number.start.dtype) for name, each in self._masters.items()}
        return self._kind.put(self._rounded(), self._still | numbers) if numbers else self._rounded()

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The weight that would be stored, differentiable in the numbers that move."""
        numbers = {name: number.float() for name, number in self._still.items()}
        numbers |= {name: master.stored() for name, master in self._masters.items()}
        return self._kind.weight(self._kind.fixed(self._rounded(), self._format), numbers, dtype)

    def step(self, weight: Tensor, gradient: Tensor, move: float, rate: float) -> None:
        """Against ``gradient`` (out, in), of the loss by ``weight``, which this made: positions by ``move`` steps of
        the grid, numbers by about ``rate`` units."""
        if self._adam is not None:
            weight.backward(gradient.to(weight))
            self._adam.param_groups[0]["lr"] = rate
            self._adam.step()
            self._adam.zero_grad()
        if self._positions is not None:
            direction = gradient.sign().to(self._positions)
            if self._fixed is not None:
                direction.masked_fill_(self._fixed, 0)
            self._positions.sub_(direction, alpha=move)

    def _rounded(self) -> AnyQuantized:
        if self._positions is None:
            return self._start
        assert isinstance(self._start, Quantized) and isinstance(self._format, Format)
        return self._start._replace(codes=_codes(self._positions, self._start.codes.dtype, self._format))


def _positions(start: Quantized, format: Format, rests: Tensor) -> Tensor:
    """Where on its grid each weight was when its code was chosen (out, in), float32."""
    codes = start.codes.float()
    found = codes + rests.float() / per_column(start.grid.scales.float(), codes.shape[1], format)
    # Of a tie, or where the rest belongs to another code (a method that rounds otherwise), the code counts.
    return torch.where(_codes(found, start.codes.dtype, format) == start.codes, found, codes)


def _codes(positions: Tensor, dtype: torch.dtype, format: Format) -> Tensor:
    lowest = -(2 ** (format.bits - 1)) if format.symmetric else 0
    return positions.round().clamp_(lowest, lowest + 2**format.bits - 1).to(dtype)
