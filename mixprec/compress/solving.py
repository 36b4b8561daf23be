"""What a method's solver is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.compress.folding import Freedom
from mixprec.compress.options import SolveOptions
from mixprec.numerics import storage
from mixprec.numerics.formats import WHOLE_ROW, AnyFormat, Format
from mixprec.numerics.hessian import Factor, factorize
from mixprec.numerics.plain import Plain
from mixprec.numerics.statistics import InputStatistics
from mixprec.numerics.storage import AnyQuantized
from mixprec.plan.schema import Treatment


class Solved(NamedTuple):
    """``restored`` (out, in): the weight's new values, in the type in which it is stored; ``quantized``: what they come
    from, in the treatment's format, or the one that fits (numerics.formats.fitting). ``factor``: what solved it, None
    for methods without one. ``fallback``: the method that took over where the Hessian could not be solved with.
    ``scale`` (in,): what the columns of ``quantized`` were multiplied with and those of ``restored`` are divided by
    again (numerics.storage.unscaled), None where inputs are scaled too, or nothing is. ``rests`` (out, in): what
    rounding took from each weight as the method compensated it, where somebody asked and it compensates."""

    restored: Tensor
    quantized: AnyQuantized
    factor: Factor | None = None
    fallback: str = ""
    scale: Tensor | None = None
    rests: Tensor | None = None


class GroupInputs:
    """The inputs that a group of linears shares, and the factors of their Hessian, each made once for the group.

    ``parts``: address -> parts of its rows for which tokens count differently, where some do.
    """

    def __init__(
        self, statistics: InputStatistics, options: SolveOptions, parts: Mapping[str, Sequence[Part]] | None = None
    ) -> None:
        self.statistics, self.parts = statistics, parts or {}
        self._options = options
        self._factors: dict[int | None, Factor] = {}

    def factor(self, group_size: int | None = None) -> Factor:
        """In the order in which formats of this group size are solved; None: columns in their own order."""
        if group_size not in self._factors:
            self._factors[group_size] = factorize(
                self.statistics.hessian,
                damping=self._options.damping,
                act_order=group_size is not None,
                group_size=None if group_size == WHOLE_ROW else group_size,
            )
        return self._factors[group_size]


class Part(NamedTuple):
    """Some ``rows`` of a linear, and the ``inputs`` as they count for these."""

    rows: slice
    inputs: GroupInputs


class Task(NamedTuple):
    """What is to be solved: the ``weight`` (out, in) of a module, in its stored type, or of several, stacked; and how.

    ``given``: its inputs; None only for methods whose record says that they can do without. ``rests``: whether
    somebody wants to know what rounding took from each weight.
    """

    addresses: Sequence[str]
    weight: Tensor
    treatment: Treatment
    given: GroupInputs | None
    options: SolveOptions
    rests: bool = False

    @property
    def inputs(self) -> GroupInputs:
        """The inputs, for methods that always need them."""
        assert self.given is not None
        return self.given

    @property
    def grid(self) -> Format:
        """The format, for methods that round to grids of integers."""
        assert isinstance(self.treatment.format, Format)  # Treatment.problem sees to it
        return self.treatment.format

    @property
    def ordered(self) -> Factor:
        """The inputs' factor, for methods that go column by column through a grid."""
        return self.inputs.factor(self.grid.group_size if self.options.act_order else None)

    def room_for_rests(self) -> Tensor | None:
        """Where a method that compensates puts its rests (in, out), if they are wanted."""
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        return self.weight.new_empty(self.weight.shape[::-1], dtype=dtype) if self.rests else None

    def rounded(
        self, quantized: AnyQuantized, format: AnyFormat, factor: Factor | None = None, rests: Tensor | None = None
    ) -> Solved:
        """The result that ``quantized``, in ``format``, is; ``rests`` (in, out)."""
        restored = storage.dequantize(quantized, format, self.weight.dtype).to(self.weight.device)
        return Solved(restored, quantized, factor, rests=None if rests is None else rests.T)


def plain(weight: Tensor, factor: Factor | None = None) -> Solved:
    """The result where nothing was rounded."""
    return Solved(weight, Plain(weight), factor)


class Sharing(NamedTuple):
    """Linears that share their input, not solved yet. ``weights`` (out_i, in), ``formats`` and ``kinds``: one for each.

    ``statistics``: of the input; ``freedom`` and ``tie``: which scales of it can be folded (compress.folding);
    ``scale_dtype``: of the grids' scales. ``channels`` (in,): importance of the input channels, where it is known from
    elsewhere.
    """

    weights: Sequence[Tensor]
    formats: Sequence[AnyFormat]
    kinds: tuple[str, ...]
    statistics: InputStatistics
    freedom: Freedom
    tie: Tensor | None
    scale_dtype: torch.dtype
    options: SolveOptions
    channels: Tensor | None = None


class Scaled(NamedTuple):
    """``scale`` (in,), positive: what columns are to be multiplied with and inputs divided by; ``told``: one number of
    it, for reports."""

    scale: Tensor
    told: float


class Solver(NamedTuple):
    """How a method solves. ``scale``: searches a scale of the inputs that linears share, before they are solved for.
    ``stacks``: solving for several weights at once costs the same as for one, as in a loop over columns, and their rows
    don't see one another."""

    solve: Callable[[Task], Solved]
    scale: Callable[[Sharing], Scaled] | None = None
    stacks: bool = False
