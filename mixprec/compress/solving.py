"""What a method's solver is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

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
    for methods without one. ``fallback``: the method that took over where the Hessian could not be solved with."""

    restored: Tensor
    quantized: AnyQuantized
    factor: Factor | None = None
    fallback: str = ""


class GroupInputs:
    """The inputs that a group of linears shares, and the factors of their Hessian, each made once for the group."""

    def __init__(self, statistics: InputStatistics, options: SolveOptions) -> None:
        self.statistics = statistics
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


class Task(NamedTuple):
    """What is to be solved: ``weight`` (out, in), in its stored type, or several that are stacked, and how.

    ``given``: its inputs; None only for methods whose record says that they can do without.
    """

    weight: Tensor
    treatment: Treatment
    given: GroupInputs | None
    options: SolveOptions

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

    def rounded(self, quantized: AnyQuantized, format: AnyFormat, factor: Factor | None = None) -> Solved:
        """The result that ``quantized``, in ``format``, is."""
        restored = storage.dequantize(quantized, format, self.weight.dtype).to(self.weight.device)
        return Solved(restored, quantized, factor)


def plain(weight: Tensor, factor: Factor | None = None) -> Solved:
    """The result where nothing was rounded."""
    return Solved(weight, Plain(weight), factor)


class Solver(NamedTuple):
    """How a method solves. ``stacks``: for several weights at once it costs the same as for one, as in a loop over
    columns, and their rows don't see one another."""

    solve: Callable[[Task], Solved]
    stacks: bool = False
