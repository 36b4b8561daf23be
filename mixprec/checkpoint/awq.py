"""The ``awq`` format: AutoAWQ's GEMM version, as vLLM, SGLang, transformers and mlx-lm read it.

4 bits with zero points, one group size for all packed modules; those that are kept stand under
``modules_to_not_convert``, and for GPTQModel under ``dynamic``. It holds codes of any method: that they are AWQ's own
is not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixprec.checkpoint import holding, integers, packed, shards
from mixprec.checkpoint.base import CheckpointFormat, Held
from mixprec.checkpoint.packings.awq import BITS, CODES, KEPT, ORDER, PACKING, PER_WORD, SCALES, VERSION, ZEROS
from mixprec.checkpoint.said import Said
from mixprec.checkpoint.target import CompressedModule
from mixprec.models.decoder import Decoder, Linear
from mixprec.numerics import packing
from mixprec.numerics.formats import AnyFormat
from mixprec.numerics.groupwise import Grid, Quantized
from mixprec.plan.patterns import regexes
from mixprec.plan.schema import Plan


def pack_codes(quantized: Quantized) -> dict[str, Tensor]:
    """The tensors that hold codes (out, in) and grid, 4 bits with zero points, by their names within the module."""
    codes, (scales, zeros) = quantized
    assert zeros is not None  # integers.problems lets no other through
    return {CODES: _words(codes.T), ZEROS: _words(zeros.T), SCALES: scales.T.contiguous()}


def unpack_codes(tensors: Mapping[str, Tensor]) -> Quantized:
    """The inverse of ``pack_codes``."""
    codes, zeros = (_numbers(tensors[name]).T.contiguous() for name in (CODES, ZEROS))
    return Quantized(codes, Grid(tensors[SCALES].T.contiguous(), zeros))


def _words(numbers: Tensor) -> Tensor:
    """(n, out) -> (n, out / 8) int32."""
    eights = numbers.unflatten(1, (-1, PER_WORD))
    return packing.pack(eights[..., list(ORDER)].flatten(1), BITS)


def _numbers(words: Tensor) -> Tensor:
    """(n, out / 8) int32 -> (n, out) uint8."""
    places = packing.unpack(words, BITS, words.shape[1] * PER_WORD).unflatten(1, (-1, PER_WORD))
    numbers: Tensor = places[..., torch.tensor(ORDER).argsort()].flatten(1)
    return numbers


def _pack(module: CompressedModule, plan: Plan) -> dict[str, Tensor]:
    address = module.weight_name.removesuffix(".weight")
    quantized, _ = packed.codes_of(module)
    return {f"{address}.{name}": tensor for name, tensor in pack_codes(quantized).items()}


def _read(module: Linear, tensors: Mapping[str, Tensor], format: AnyFormat, by: Plan | Said | None) -> Held:
    return Held(unpack_codes(packed.local(module.address, tensors)), integers.grid(format))


def quantization_config(plan: Plan, inventory: Decoder) -> dict[str, Any]:
    """What config.json says of the packed modules, by AutoAWQ's keys."""
    _, kept = integers.by_format(plan, inventory)
    # GPTQModel takes a kept module for a packed one, of zeros, unless its own key says so.
    dynamic: dict[str, Any] = {"dynamic": {f"{KEPT}{pattern}": {} for pattern in regexes(kept)}} if kept else {}
    return {
        "quant_method": "awq",
        "bits": BITS,
        "group_size": integers.common_group(plan, inventory)[0],
        "zero_point": True,
        "version": VERSION,
        "modules_to_not_convert": kept or None,
        **dynamic,
    }


AWQ = CheckpointFormat(
    name="awq",
    problems=lambda plan, inventory, config: holding.awq(plan, inventory),
    pack=_pack,
    read=_read,
    quantization_config=quantization_config,
    bytes=lambda plan, inventory, config: shards.predict(integers.tensors(PACKING), plan, inventory, config),
    finish=lambda job: shards.finish(job, dict.fromkeys(PACKING.places, quantization_config(job.plan, job.inventory))),
)
