"""The methods by name: what each makes of the weights of a group of linears that share their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mixprec.compress.anyk import anyk
from mixprec.compress.clipping import search_clip
from mixprec.compress.ggml import ggml
from mixprec.compress.gptaq import gptaq
from mixprec.compress.gptq import DEFAULT_SEARCH, gptq
from mixprec.compress.magnitude import magnitude
from mixprec.compress.options import SolveOptions
from mixprec.compress.rtn import rtn
from mixprec.compress.sparsegpt import refine, sparsegpt
from mixprec.compress.wanda import wanda
from mixprec.modules import parse_address
from mixprec.numerics import storage
from mixprec.numerics.formats import WHOLE_ROW, CodebookFormat, Format, GgmlFormat, Keep, fitting
from mixprec.numerics.groupwise import Quantized, Search, encode, scale_dtype_of
from mixprec.numerics.hessian import Factor, SingularHessian, factorize
from mixprec.numerics.plain import Plain
from mixprec.numerics.statistics import InputStatistics
from mixprec.numerics.storage import AnyQuantized
from mixprec.plan.schema import Method, Treatment


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


#: One weight (out, in), in its stored type, or several stacked. The inputs are there for methods that need them.
_Solve = Callable[[Tensor, Treatment, GroupInputs, SolveOptions], Solved]


def _rtn(weight: Tensor, treatment: Treatment) -> Solved:
    format = _integer(treatment)
    quantized = rtn(weight, format)
    return Solved(storage.dequantize(quantized, format, weight.dtype), quantized)


def _gptq(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    format = _integer(treatment)
    factor = inputs.factor(format.group_size if options.act_order else None)
    quantized = gptq(weight, factor, format, search=_search(options))
    return Solved(storage.dequantize(quantized, format, weight.dtype), quantized, factor)


def _gptaq(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    format, drift = _integer(treatment), inputs.statistics.drift
    assert drift is not None  # the walk keeps the uncompressed model's states beside the others
    factor = inputs.factor(format.group_size if options.act_order else None)
    quantized = gptaq(weight, factor, format, drift, search=_search(options))
    return Solved(storage.dequantize(quantized, format, weight.dtype), quantized, factor)


def _awq(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    format = _integer(treatment)
    if not options.clip:
        return _rtn(weight, treatment)
    grid = search_clip(weight, inputs.statistics.hessian, format)
    quantized = Quantized(encode(weight, grid, format), grid)
    return Solved(storage.dequantize(quantized, format, weight.dtype), quantized)


def _anyk(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    format = treatment.format
    assert isinstance(format, CodebookFormat)  # Treatment.problem sees to it
    quantized = anyk(weight, inputs.statistics.hessian.diagonal(), format)
    return Solved(storage.dequantize(quantized, format, weight.dtype), quantized)


def _sparsegpt(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    assert treatment.sparsity is not None
    format = None if isinstance(treatment.format, Keep) else _integer(treatment)
    factor, hessian = inputs.factor(), inputs.statistics.hessian
    found = sparsegpt(weight, factor, treatment.sparsity, None if options.refine else format)
    if options.refine:
        moved = refine(weight, found.weight, found.mask, hessian, steps=options.refine, damping=options.damping)
        found = found._replace(weight=moved)
        if format is not None:
            scales = scale_dtype_of(weight.dtype)
            found = sparsegpt(moved, factor, treatment.sparsity, format, mask=found.mask, scale_dtype=scales)
    restored = found.weight.to(weight.dtype)
    return Solved(restored, Plain(restored) if found.quantized is None else found.quantized, factor)


def _wanda(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    assert treatment.sparsity is not None
    return _plain(wanda(weight, inputs.statistics.hessian.diagonal(), treatment.sparsity))


def _magnitude(weight: Tensor, treatment: Treatment) -> Solved:
    assert treatment.sparsity is not None
    return _plain(magnitude(weight, treatment.sparsity))


def _ggml(weight: Tensor, treatment: Treatment, inputs: GroupInputs | None) -> Solved:
    assert isinstance(treatment.format, GgmlFormat)  # Treatment.problem sees to it
    format = fitting(treatment.format, weight.shape[1])  # plans hold what fits, tables of candidates don't
    if not isinstance(format, GgmlFormat):
        return _plain(weight)
    importance = None if inputs is None else inputs.statistics.hessian.diagonal()
    quantized = ggml(weight, importance, format)
    return Solved(storage.dequantize(quantized, format, weight.dtype).to(weight.device), quantized)


#: Methods that look at a linear's inputs (plan.schema.NEEDS_INPUTS), and those that don't.
CALIBRATED: dict[Method, _Solve] = {
    "gptq": _gptq,
    "gptaq": _gptaq,
    "awq": _awq,
    "anyk": _anyk,
    "sparsegpt": _sparsegpt,
    "wanda": _wanda,
}
UNCALIBRATED: dict[Method, Callable[[Tensor, Treatment], Solved]] = {"rtn": _rtn, "magnitude": _magnitude}
#: Methods that look at the inputs where there are any (plan.schema.USES_INPUTS).
EITHER: dict[Method, Callable[[Tensor, Treatment, GroupInputs | None], Solved]] = {"ggml": _ggml}
#: Column loops, which cost the same for one weight as for several that are stacked; their rows don't see one another.
_STACKED: tuple[Method, ...] = ("gptq", "gptaq")


def solve(
    weights: Mapping[str, Tensor],
    treatments: Mapping[str, Treatment],
    inputs: GroupInputs | None,
    options: SolveOptions,
) -> dict[str, Solved]:
    """Compress the ``weights`` (out, in) of a group, each in its stored type, as their ``treatments`` say.

    ``inputs`` may be None where no method needs them.
    """
    together: dict[object, list[str]] = {}
    for address, treatment in treatments.items():
        stacked = treatment.method in _STACKED
        together.setdefault((treatment, weights[address].dtype) if stacked else address, []).append(address)
    solved: dict[str, Solved] = {}
    for addresses in together.values():
        first = addresses[0]  # of a stack; AWQ, which asks for the kind, stacks nothing
        _, kind = parse_address(first)
        own = options.model_copy(update={"clip": options.clips(kind)})
        found = _solve(torch.cat([weights[a] for a in addresses]), treatments[first], inputs, own)
        rows = [len(weights[address]) for address in addresses]
        solved |= dict(zip(addresses, _split(found, rows), strict=True))
    return solved


def _solve(weight: Tensor, treatment: Treatment, inputs: GroupInputs | None, options: SolveOptions) -> Solved:
    if treatment.method in UNCALIBRATED:
        return UNCALIBRATED[treatment.method](weight, treatment)
    if treatment.method in EITHER:
        return EITHER[treatment.method](weight, treatment, inputs)
    assert inputs is not None
    try:
        return CALIBRATED[treatment.method](weight, treatment, inputs, options)
    except SingularHessian:
        return _without_hessian(weight, treatment, inputs, options)


def _without_hessian(weight: Tensor, treatment: Treatment, inputs: GroupInputs, options: SolveOptions) -> Solved:
    """What comes closest where the Hessian can't be solved with: no column makes up for another."""
    if treatment.sparsity is None:
        return _rtn(weight, treatment)._replace(fallback="rtn")
    pruned = _wanda(weight, treatment, inputs, options)
    if isinstance(treatment.format, Keep):
        return pruned._replace(fallback="wanda")
    # Zero is on every grid, so what was pruned stays so.
    return _rtn(pruned.restored, treatment)._replace(fallback="wanda, rtn")


def _split(found: Solved, rows: list[int]) -> list[Solved]:
    """A stacked result as one for each weight."""
    if len(rows) == 1:
        return [found]
    parts = zip(found.restored.split(rows), storage.split(found.quantized, rows), strict=True)
    return [found._replace(restored=restored, quantized=quantized) for restored, quantized in parts]


def _plain(weight: Tensor) -> Solved:
    return Solved(weight, Plain(weight))


def _search(options: SolveOptions) -> Search | None:
    return DEFAULT_SEARCH if options.grid_search else None


def _integer(treatment: Treatment) -> Format:
    assert isinstance(treatment.format, Format)  # Treatment.problem sees to it
    return treatment.format
