"""The ``gptq`` format, as GPTQModel and vLLM read it: codes packed down the columns, scales and zero points per group.

2, 3, 4 and 8 bits; 32 codes in 3 bits fill 3 words. The first layout ("gptq") stores zero points less one, so that zero
itself is none of them and readers that add one without a mask break its neighbours: plans with asymmetric formats are
written in the second layout ("gptq_v2"), which stores them as they are. Modules whose format is not the most frequent
one stand under ``dynamic``; names of groups that vLLM fuses are there beside their modules'. Columns are never
reordered (our act order sorts groups and columns within them for the solve alone), so g_idx just counts groups.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import torch
from pydantic import BeforeValidator, model_validator
from torch import Tensor

from mixprec.checkpoint import holding, integers, packed, shards
from mixprec.checkpoint.base import CheckpointFormat, Held, Packing
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid as SaidGrid
from mixprec.checkpoint.said import GroupSize, Nothing, Said, Strict
from mixprec.checkpoint.shards import Predicted
from mixprec.checkpoint.target import CompressedModule
from mixprec.core.errors import UserError
from mixprec.core.version import VERSION
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics import packing
from mixprec.numerics.formats import AnyFormat, Format
from mixprec.numerics.groupwise import Grid, Quantized, scale_dtype_of
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan

CODES, ZEROS, SCALES, INDEX = "qweight", "qzeros", "scales", "g_idx"
#: Keys of GPTQ that say how codes were found or which kernel runs them; neither changes the codes.
_FREE: Final = frozenset({
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
        pattern: {key: value for key, value in own.items() if key not in _FREE} if isinstance(own, dict) else own
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
    lm_head: Literal[False] | None = None
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

    def grid(self, address: str, patterns: Matcher) -> SaidGrid | None:
        """What is said of a module; None where it is not quantized."""
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


def pack_codes(quantized: Quantized, format: Format, *, shifted: bool) -> dict[str, Tensor]:
    """The tensors that hold codes and grid, by their names within the module.

    ``shifted``: zero points are stored less one.
    """
    codes, grid = quantized
    columns, half = codes.shape[1], 2 ** (format.bits - 1)
    unsigned = codes if grid.zeros is not None else (codes.to(torch.int16) + half).to(torch.uint8)
    zeros = grid.zeros if grid.zeros is not None else torch.full_like(grid.scales, half, dtype=torch.uint8)
    zeros = zeros - 1 if shifted else zeros
    return {
        CODES: packing.pack(unsigned, format.bits).T.contiguous(),
        ZEROS: packing.pack(zeros.T, format.bits),
        SCALES: grid.scales.T.contiguous(),
        INDEX: (torch.arange(columns) // format.width(columns)).to(torch.int32),
    }


def unpack_codes(tensors: Mapping[str, Tensor], format: Format, columns: int, *, shifted: bool) -> Quantized:
    """The inverse of ``pack_codes``, for a weight of so many columns; their groups are taken to lie in a row."""
    scales = tensors[SCALES].T.contiguous()
    codes = packing.unpack(tensors[CODES].T, format.bits, columns)
    if format.symmetric:
        half = 2 ** (format.bits - 1)
        return Quantized((codes.to(torch.int16) - half).to(torch.int8), Grid(scales, None))
    zeros = packing.unpack(tensors[ZEROS], format.bits, len(scales)).T.contiguous()
    return Quantized(codes, Grid(scales, zeros + 1 if shifted else zeros))


def _pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    address = module.weight_name.removesuffix(".weight")
    quantized, format = packed.codes_of(module)
    return {f"{address}.{name}": t for name, t in pack_codes(quantized, format, shifted=_shifted(plan)).items()}


def _read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    grid, local = integers.grid(format), packed.local(module.address, tensors)
    shifted = by.shifted if isinstance(by, Config) else isinstance(by, Plan) and _shifted(by)
    if grid.symmetric:
        # Some readers add the zero points of a symmetric grid, others pass over them: they have to be one.
        zeros = packing.unpack(local[ZEROS], grid.bits, module.out_features)
        if (zeros != 2 ** (grid.bits - 1) - shifted).any():
            raise UserError(f"{module.address}.{ZEROS} are not those of a symmetric grid")
    return Held(unpack_codes(local, grid, module.in_features, shifted=shifted), grid)


def _shapes(module: Linear, format: Format) -> dict[str, Sequence[tuple[int, ...]]]:
    return {name: [each.shape] for name, each in _inside(module, format, torch.bfloat16).items()}


def _shifted(plan: Plan) -> bool:
    """Whether the first layout does, which knows no zero point 0."""
    return all(format.symmetric for format in plan.formats.values() if isinstance(format, Format))


def quantization_config(plan: Plan, inventory: Decoder) -> dict[str, Any]:
    """What config.json says of the packed modules."""
    formats, kept = integers.by_format(plan, inventory)
    base = next(iter(formats), Format(4, 128))  # nothing is packed: what is said must still parse
    dynamic: dict[str, dict[str, Any]] = {}
    for format, addresses in formats.items():
        if format != base:
            dynamic |= {f"+:{pattern}": _grid(format) for pattern in regexes(_with_fused(addresses, inventory))}
    dynamic |= {f"-:{pattern}": {} for pattern in regexes(_with_fused(kept, inventory))}
    packed = [address for addresses in formats.values() for address in addresses]
    # transformers knows no ``dynamic``: without the list it would take kept modules for packed ones.
    listed = {"modules_in_block_to_quantize": [packed]} if kept and packed else {}
    return {
        "quant_method": "gptq",
        "checkpoint_format": "gptq" if _shifted(plan) else "gptq_v2",
        **_grid(base),
        "desc_act": False,
        "lm_head": False,
        "pack_dtype": "int32",
        "dynamic": dynamic,
        **listed,
        "meta": {"quantizer": [f"mixprec:{VERSION}"]},
    }


def _grid(format: Format) -> dict[str, Any]:
    return {"bits": format.bits, "group_size": format.group_size, "sym": format.symmetric}


def _with_fused(addresses: Sequence[str], inventory: Decoder) -> list[str]:
    """The names, and those that vLLM gives to groups of which all are among them."""
    known = set(addresses)
    whole = [group for group in inventory.groups if known.issuperset(linear.address for linear in group)]
    return [*addresses, *(group.fused for group in whole if group.fused)]


def _tensors(module: Linear, format: AnyFormat, dtype: torch.dtype) -> dict[str, Predicted]:
    inside = _inside(module, integers.grid(format), dtype)
    return {f"{module.address}.{name}": predicted for name, predicted in inside.items()}


def _inside(module: Linear, format: Format, dtype: torch.dtype) -> dict[str, Predicted]:
    """A packed module's tensors by their names within it."""
    rows, columns = module.out_features, module.in_features
    groups = format.groups(columns)
    return {
        CODES: Predicted(torch.int32, (packing.words(columns, format.bits), rows)),
        SCALES: Predicted(scale_dtype_of(dtype), (groups, rows)),
        ZEROS: Predicted(torch.int32, (groups, packing.words(rows, format.bits))),
        INDEX: Predicted(torch.int32, (columns,)),
    }


GPTQ = CheckpointFormat(
    name="gptq",
    problems=lambda plan, inventory, config: holding.gptq(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=quantization_config,
    bytes=lambda plan, inventory, config: shards.predict(_tensors, plan, inventory, config),
    finish=lambda job: shards.finish(job, quantization_config(job.plan, job.inventory)),
    packing=Packing(
        mark=CODES,
        parts=frozenset({CODES, ZEROS, SCALES, INDEX}),
        columns=INDEX,
        said=Config,
        shapes=_shapes,
    ),
)
