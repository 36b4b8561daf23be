"""Packed modules of GPTQ, as GPTQModel and vLLM read them: codes packed down the columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, model_validator

from mixprec.checkpoint.packings.packing import Packing, scale_type
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid as SaidGrid
from mixprec.checkpoint.said import GroupSize, Nothing, Said, Strict
from mixprec.core.headers import Entry
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import Format
from mixprec.numerics.words import words

CODES, ZEROS, SCALES, INDEX = "qweight", "qzeros", "scales", "g_idx"
#: Keys of GPTQ that say how codes were found or which kernel runs them; neither changes the codes.
FREE: Final = frozenset({
    "act_group_aware", "backend", "batch_size", "block_name_to_quantize", "cache_block_outputs",
    "damp_auto_increment", "damp_percent", "dataset", "desc_act", "disable_exllama", "exllama_config", "hyb_act",
    "max_input_length", "meta", "model_file_base_name", "model_name_or_path", "model_seqlen",
    "module_name_preceding_first_block", "mse", "pack_impl", "pad_token_id", "static_groups", "tokenizer",
    "true_sequential", "use_cuda_fp16", "use_exllama",
})  # fmt: skip


class Override(Strict):
    """What ``dynamic`` says of some modules."""

    bits: int | None = None
    group_size: GroupSize | None = None
    sym: bool | None = None


def _without_free(said: Any) -> Any:
    if not isinstance(said, dict):
        return said
    return {
        pattern: {key: value for key, value in own.items() if key not in FREE} if isinstance(own, dict) else own
        for pattern, own in said.items()
    }


class Config(Said):
    """What AutoGPTQ, transformers 5 (GPTQConfig) and GPTQModel (QuantizeConfig) say of packed weights."""

    quant_method: Literal["gptq"]
    method: Literal["gptq"] | None = None
    bits: int
    group_size: GroupSize
    sym: bool = True
    checkpoint_format: Literal["gptq", "gptq_v2"] | None = None
    format: Literal["gptq", "gptq_v2"] | None = None
    dynamic: Annotated[dict[str, Override], BeforeValidator(_without_free)] | None = None
    modules_in_block_to_quantize: list[list[str] | str] | None = None
    pack_dtype: Literal["int32"] = "int32"
    lm_head: bool | None = None
    is_marlin_format: Literal[False] | None = None
    adapter: Nothing = None
    rotation: Nothing = None

    @model_validator(mode="before")
    @classmethod
    def _needed(cls, said: Any) -> Any:
        return _without_free({"": said})[""]

    @property
    def shifted(self) -> bool:
        """Whether zero points are stored less one."""
        return (self.checkpoint_format or self.format or "gptq") == "gptq"

    def grid(self, module: Linear, patterns: Matcher) -> SaidGrid | None:
        """What is said of a module; None where it is not quantized."""
        address = module.address
        if not (module.layer or (module.kind == "head" and self.lm_head)):
            return None
        listed = self.modules_in_block_to_quantize
        names = [name for entry in listed or () for name in ([entry] if isinstance(entry, str) else entry)]
        if listed is not None and not any(f".{address}".endswith(f".{name}") for name in names):
            return None
        for pattern, own in (self.dynamic or {}).items():
            if patterns.match(re.sub("^[+-]:", "", pattern), address):
                if pattern.startswith("-:"):
                    return None
                return SaidGrid(
                    self.bits if own.bits is None else own.bits,
                    self.group_size if own.group_size is None else own.group_size,
                    self.sym if own.sym is None else own.sym,
                )
        return SaidGrid(self.bits, self.group_size, self.sym)


def _shapes(module: Linear, format: Format) -> dict[str, Sequence[tuple[int, ...]]]:
    return {name: [each.shape] for name, each in _tensors(module, format, "BF16").items()}


def _tensors(module: Linear, format: Format, dtype: str) -> dict[str, Entry]:
    """What is written here, by names within the module."""
    rows, columns = module.out_features, module.in_features
    groups = format.groups(columns)
    return {
        CODES: Entry("I32", (words(columns, format.bits), rows)),
        SCALES: Entry(scale_type(dtype), (groups, rows)),
        ZEROS: Entry("I32", (groups, words(rows, format.bits))),
        INDEX: Entry("I32", (columns,)),
    }


PACKING = Packing(
    mark=CODES,
    parts=frozenset({CODES, ZEROS, SCALES, INDEX}),
    columns=INDEX,
    said=Config,
    shapes=_shapes,
    tensors=_tensors,
)
