"""Which plans and models a GGUF file holds, and why not: shapes, bits and the configuration, without any tensor."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PretrainedConfig

from mixprec.models.decoder import Decoder, Linear
from mixprec.models.gguf import metadata
from mixprec.numerics.formats import GGML, WORD, AffineFormat, AnyFormat, CodebookFormat, Drop, Format, GgmlFormat, Keep
from mixprec.numerics.ggml import exact_type
from mixprec.plan.schema import Plan, unfit


def problems(plan: Plan, inventory: Decoder, config: PretrainedConfig) -> dict[str, str]:
    """Address -> why no GGUF file can hold it; what concerns the whole model stands at its first module."""
    found = {}
    for module in inventory.planned(plan.modules):
        treatment = plan.treatments[module.address]
        format, columns = treatment.format, module.in_features
        if isinstance(format, CodebookFormat):
            found[module.address] = f"{format}: llama.cpp has no code books per row; {_nearest(format.bits, columns)}"
        elif isinstance(format, AffineFormat):
            near = _nearest(format.bits, columns)
            found[module.address] = f"{format}: offsets of 16 bits are not written as llama.cpp's types; {near}"
        elif isinstance(format, Format) and exact_type(format, columns) is None:
            found[module.address] = (
                f"{format}: no type of llama.cpp holds these grids exactly, which takes groups of a multiple of 32 and "
                f"at most 8 bits, 7 with zero points; {_nearest(format.bits, columns)}"
            )
        elif isinstance(format, GgmlFormat) and not format.fits(columns):
            found[module.address] = unfit(format, columns)
        elif isinstance(format, GgmlFormat) and format.needs_importance and not _weighed(module, inventory):
            found[module.address] = f"{format} needs an importance of inputs, which the embedding has not; take q2_k"
    for module, reason in _mixed(plan, inventory):
        found.setdefault(module.address, reason)
    general = metadata.problem(config)
    return {inventory.linears[0].address: general} if general else found


def stacks(inventory: Decoder) -> list[tuple[Linear, ...]]:
    """Experts of one layer and kind, which are one tensor in GGUF and have one type there."""
    found: dict[tuple[int, str], list[Linear]] = {}
    for module in inventory.linears:
        if module.expert is not None:
            found.setdefault((module.layer, module.kind), []).append(module)
    return [tuple(modules) for modules in found.values()]


def _mixed(plan: Plan, inventory: Decoder) -> Iterator[tuple[Linear, str]]:
    """Experts that are to have another type than others of their tensor, and why they can't."""
    formats = plan.formats
    for modules in stacks(inventory):
        there = [each for each in modules if each.address in formats and each.address not in plan.dropped]
        mine = {module: _type(formats[module.address], module) for module in there}
        if len(set(mine.values())) > 1:
            most = max(there, key=lambda module: _bits(formats[module.address]))
            wanted = formats[most.address]
            kinds = " and ".join(sorted(set(mine.values())))
            label = f"{most.layer}_{most.kind}"
            reason = (
                f"layer {most.layer}'s experts are one tensor of one type for {most.kind} in GGUF, and have {kinds}; "
                f"the nearest plan has {wanted} for {label} (a rule for {label} means all of them, as does tie: fused)"
            )
            yield from ((module, reason) for module in there if mine[module] != mine[most])


def _bits(format: AnyFormat) -> float:
    return WORD if isinstance(format, Keep | Drop) else format.bits


def _type(format: AnyFormat, module: Linear) -> str:
    """The type that a format becomes in the file."""
    held = exact_type(format, module.in_features) if isinstance(format, Format) else None
    return str(held or format)


def _weighed(module: Linear, inventory: Decoder) -> bool:
    """Whether a matrix's inputs are numbers: of all but an embedding that is no head."""
    return bool(module.layer) or module == inventory.outside[-1]


def _nearest(bits: float, columns: int) -> str:
    near = sorted(GGML, key=lambda name: abs(GgmlFormat(name).bits - bits))
    names = [name for name in near if GgmlFormat(name).fits(columns)][:3]
    return f"with method ggml the nearest are {', '.join(names)}" if names else "keep it"
