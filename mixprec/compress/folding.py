"""Folding scales of input channels into what produces these inputs, so that the model's function stays the same.

AWQ (arXiv 2306.00978, §3.2) multiplies the columns of linears by s and divides their inputs by s. Where the inputs come
out of a norm, or channel by channel out of another linear, its weights are divided and nothing remains to be computed
later: the outputs of v are averaged, those of up are multiplied by the gate, both channel by channel.

A kept module must stay the function it was, in its 16 bits. Powers of two do that: products and sums of binary numbers
move their exponents and nothing else, short of under- and overflow. Weights can lose bits only where they get smaller
(float16 weights are often close to the smallest it can hold), so scales are chosen from 1 up where a linear that is
multiplied is kept, and from 1 down where the one that is divided is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from mixprec.core.errors import UserError
from mixprec.models.decoder import Group, Norm, Nowhere, Rows
from mixprec.models.weights import weight_of
from mixprec.numerics.statistics import InputStatistics

#: Which scales a group may have: any, powers of two from 1 up or from 1 down, or only 1.
Freedom = Literal["free", "powers_up", "powers_down", "fixed"]


class Folded(NamedTuple):
    """scale (in,) float32: what columns were multiplied with and inputs are divided by now, rounding included.

    changed: names of the tensors that are different, relative to the block, in the order of its state.
    """

    scale: Tensor
    changed: tuple[str, ...]


def freedom(group: Group, kept: Collection[str]) -> Freedom:
    """Which scales the inputs of ``group`` may have where the linears with the addresses ``kept`` are kept.

    Gemma's norms multiply by 1 + w: even powers of two change the rounding of the stored w, so a group behind one gets
    no scales where some of its linears are kept. What reads a norm beside its linears, such as a router, is kept.
    Raises UserError where nothing is known that a scale folds into.
    """
    source = _source(group)
    held = [linear for linear in group if linear.address in kept]
    if len(held) == len(group) or isinstance(source, Nowhere):
        return "fixed"
    if isinstance(source, Rows):
        return "powers_up" if held else "powers_down" if source.linear.address in kept else "free"
    return "free" if not held and not source.beside else "fixed" if source.offset else "powers_up"


class Scaled(NamedTuple):
    """Linears whose inputs have one scale, as one ``group``; ``seen``: the one of theirs whose inputs tell of all."""

    group: Group
    seen: Group


def joined(groups: Sequence[Group]) -> list[Scaled]:
    """A block's ``groups`` by their scales: those that read one norm have one, such as a layer's experts, or attention
    and MLP that work side by side.

    Of those the first one that is no routed expert's sees all tokens; where there is none, all of a layer's are looked
    at for them.
    """
    found: dict[object, list[Group]] = {}
    for number, group in enumerate(groups):
        found.setdefault(group.source if isinstance(group.source, Norm) else number, []).append(group)
    return [
        Scaled(
            each[0] if len(each) == 1 else Group(tuple(linear for group in each for linear in group), each[0].source),
            next((group for group in each if group.routed is None), each[0]),
        )
        for each in found.values()
    ]


def tie(group: Group, device: torch.device | None = None) -> Tensor | None:
    """(in,) long: the row of the source linear that each input channel of ``group`` comes from; None for norms.

    With grouped-query attention several query heads, and so several inputs of o, come from one head of v.
    Raises UserError where nothing is known that a scale folds into.
    """
    source = _source(group)
    return source.of(torch.arange(group[0].in_features, device=device)) if isinstance(source, Rows) else None


def fold(
    block: nn.Module,
    group: Group,
    scale: Tensor,
    *,
    kept: Collection[str] = (),
    stored: torch.dtype | None = None,
) -> Folded:
    """Multiply the columns of the linears of ``group`` by ``scale`` (in,) and divide their source by it, in place.

    Scales are searched for all groups of a block before any is folded: v and up are in two. ``stored``: the type that
    the checkpoint holds weights in, by default that of the source's. A norm is rounded to it at once, and the linears
    are multiplied by what it really was divided by; they are rounded to the block's own type only, which had better be
    float32. ``kept``: addresses of linears that are kept; where such are involved, channels that can't be
    scaled without loss keep scale 1.

    Raises ValueError for scales that are not positive, that differ within a tie, or that ``freedom`` doesn't allow.
    """
    allowed, channels, source = freedom(group, kept), tie(group, scale.device), _source(group)
    _check(scale, allowed, channels, group[0].in_features)
    if bool((scale == 1).all()):
        return Folded(scale.float(), ())
    assert not isinstance(source, Nowhere)  # only 1 is allowed there
    path, exact = source.linear.module if isinstance(source, Rows) else source.path, allowed != "free"
    module = block.get_submodule(path)
    dtype = stored or cast(Tensor, module.weight).dtype
    with torch.no_grad():
        beside = [_weight_of(block, name) for name in source.beside] if isinstance(source, Norm) else []
        if isinstance(source, Norm):
            kept_here = [*(weight_of(block, linear) for linear in group if linear.address in kept), *beside]
            actual = _divide_norm(module, scale.double(), source.offset, dtype, exact, kept_here)
        else:
            assert channels is not None
            actual = _divide_rows(cast(nn.Linear, module), scale.double(), channels, dtype, exact)
        for weight in (*(weight_of(block, linear) for linear in group), *beside):
            weight.copy_(weight.to(torch.promote_types(weight.dtype, torch.float32)) * actual)
    names = [f"{path}.{name}" for name, _ in module.named_parameters()]
    names += [linear.parameter for linear in group]
    names += [f"{name}.weight" for name in source.beside] if isinstance(source, Norm) else []
    return Folded(actual.float(), tuple(names) if bool((actual != 1).any()) else ())


def divided(statistics: InputStatistics, scale: Tensor) -> InputStatistics:
    """Statistics of the inputs x / s from those of x; ``scale`` (in,)."""

    def both(moments: Tensor) -> Tensor:
        return moments / scale[:, None] / scale

    drift = None if statistics.drift is None else both(statistics.drift)
    return InputStatistics(both(statistics.hessian), statistics.mean_abs / scale, statistics.tokens, drift)


def _divide_norm(
    norm: nn.Module, scale: Tensor, offset: float, dtype: torch.dtype, exact: bool, multiplied: Sequence[Tensor]
) -> Tensor:
    """Divide what a norm multiplies with by ``scale`` (in,) float64; returns what it is divided by, once rounded.

    It stays as it is, and the result is 1, where it would become 0, and with ``exact`` where it or a column of the
    weights ``multiplied`` would be rounded.
    """
    weight = cast(Tensor, norm.weight)
    before = weight.double() + offset
    rounded = (before / scale - offset).to(dtype)
    after = rounded.double() + offset
    actual = torch.where(before == 0, scale, before / after)  # a dead channel stays dead, whatever divides it
    usable = torch.isfinite(actual) & (actual > 0)
    if exact:
        usable &= actual == scale
        for columns in multiplied:
            usable &= _holds(columns.double() * scale, dtype).all(0)
    weight.copy_(torch.where(usable, rounded.to(weight.dtype), weight))
    return torch.where(usable, actual, 1)


def _divide_rows(source: nn.Linear, scale: Tensor, channels: Tensor, dtype: torch.dtype, exact: bool) -> Tensor:
    """Divide row ``channels[j]`` of a linear, and its bias, by ``scale[j]``; with ``exact``, rows that allow it.

    Returns what (in,) each of its readers' inputs is divided by, float64.
    """
    divisors = scale.new_ones(source.out_features).index_copy_(0, channels, scale)
    parts = [source.weight] if source.bias is None else [source.weight, source.bias[:, None]]
    if exact:
        lossless = torch.cat([_holds(part.double() / divisors[:, None], dtype) for part in parts], 1).all(1)
        divisors = torch.where(lossless, divisors, 1)
    for part in parts:
        part.copy_(part.double() / divisors[:, None])
    return divisors[channels]


def _holds(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Which of the float64 ``values`` ``dtype`` holds without rounding."""
    return values.to(dtype).double() == values


def _weight_of(block: nn.Module, name: str) -> Tensor:
    """(out, in) of a module that is no linear of the map, such as a router."""
    return cast(Tensor, block.get_submodule(name).weight)


def _source(group: Group) -> Norm | Rows | Nowhere:
    if group.source is None:
        named = ", ".join(linear.address for linear in group)
        told = f" ({group.stopped})" if group.stopped else ""
        raise UserError(
            f"{named}: nothing is known that a scale on its inputs folds into{told}; choose another method than awq"
        )
    return group.source


def _check(scale: Tensor, allowed: Freedom, channels: Tensor | None, width: int) -> None:
    if scale.shape != (width,) or not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise ValueError(f"scales of {width} inputs are positive numbers; {scale.numel()} given, not all positive")
    if channels is not None and not torch.equal(
        torch.empty_like(scale).index_copy_(0, channels, scale)[channels], scale
    ):
        raise ValueError("scales differ among input channels that come from the same row")
    if allowed == "free":
        return
    powers = bool((torch.frexp(scale).mantissa == 0.5).all())
    least, most = float(scale.min()), float(scale.max())
    if not powers or (allowed != "powers_up" and most > 1) or (allowed != "powers_down" and least < 1):
        raise ValueError(f"scales from {least:.3g} to {most:.3g}, where kept linears allow {allowed!r} only")
