"""Which plans and models a GGUF file holds, and why not: shapes, bits and the configuration, without any tensor."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PretrainedConfig

from mixprec.models.decoder import Decoder
from mixprec.models.gguf import metadata
from mixprec.numerics.formats import GGML, CodebookFormat, Format, GgmlFormat
from mixprec.numerics.ggml import exact_type
from mixprec.plan.schema import Plan, unfit


class Outside(NamedTuple):
    """Types of what lies outside the blocks, None for the source's own."""

    embedding: GgmlFormat | None = None
    head: GgmlFormat | None = None

    def of(self, name: str, decoder: Decoder) -> GgmlFormat | None:
        """The type of the tensor ``name`` (transformers')."""
        return {decoder.embedding_weight: self.embedding, decoder.head_weight: self.head}.get(name)

    def problem(self, config: PretrainedConfig) -> str | None:
        """Why a model can't have it so, or None."""
        if self.head is not None and config.tie_word_embeddings:
            return f"checkpoint.head: {self.head}: this model's head is its embedding; give checkpoint.embedding"
        for name, kind in self._asdict().items():
            if kind is not None and not kind.fits(config.hidden_size):
                return f"checkpoint.{name}: {unfit(kind, config.hidden_size)}"
            if kind is not None and kind.needs_importance:
                return f"checkpoint.{name}: {kind} needs an importance of inputs, which the {name} has not; take q2_k"
        return None


def problems(plan: Plan, inventory: Decoder, config: PretrainedConfig, outside: Outside = Outside()) -> dict[str, str]:
    """Address -> why no GGUF file can hold it; what concerns the whole model stands at its first module."""
    found = {}
    for module in inventory.planned(plan.modules):
        treatment = plan.treatments[module.address]
        format, columns = treatment.format, module.in_features
        if treatment.changes and not module.layer:
            found[module.address] = f"{format}: its type is said by checkpoint.{module.kind}"
        elif isinstance(format, CodebookFormat):
            found[module.address] = f"{format}: llama.cpp has no code books per row; {_nearest(format.bits, columns)}"
        elif isinstance(format, Format) and exact_type(format, columns) is None:
            found[module.address] = (
                f"{format}: no type of llama.cpp holds these grids exactly, which takes groups of a multiple of 32 and "
                f"at most 8 bits, 7 with zero points; {_nearest(format.bits, columns)}"
            )
    general = metadata.problem(config) or outside.problem(config)
    return {inventory.linears[0].address: general} if general else found


def _nearest(bits: float, columns: int) -> str:
    near = sorted(GGML, key=lambda name: abs(GgmlFormat(name).bits - bits))
    names = [name for name in near if GgmlFormat(name).fits(columns)][:3]
    return f"with method ggml the nearest are {', '.join(names)}" if names else "keep it"
