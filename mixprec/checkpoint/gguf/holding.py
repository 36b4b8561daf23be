"""Which plans and models a GGUF file holds, and why not: shapes, bits and the configuration, without any tensor."""

from __future__ import annotations

from transformers import PretrainedConfig

from mixprec.models.decoder import Decoder, Linear
from mixprec.models.gguf import metadata
from mixprec.numerics.formats import GGML, AffineFormat, CodebookFormat, Format, GgmlFormat
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
        elif isinstance(format, GgmlFormat) and format.needs_importance and module not in _weighed(inventory):
            found[module.address] = f"{format} needs an importance of inputs, which the embedding has not; take q2_k"
    general = metadata.problem(config)
    return {inventory.linears[0].address: general} if general else found


def _weighed(inventory: Decoder) -> tuple[Linear, ...]:
    """Matrices whose inputs are numbers: all but an embedding that is no head."""
    return (*inventory.linears, inventory.outside[-1])


def _nearest(bits: float, columns: int) -> str:
    near = sorted(GGML, key=lambda name: abs(GgmlFormat(name).bits - bits))
    names = [name for name in near if GgmlFormat(name).fits(columns)][:3]
    return f"with method ggml the nearest are {', '.join(names)}" if names else "keep it"
