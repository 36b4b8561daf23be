"""Tensors of a safetensors checkpoint: types that can be computed with, values that are numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.renames import Cut
from mixprec.models.source import Source, TensorInfo

#: Types that can be computed with, by their names in safetensors.
COMPUTABLE: Final = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
#: Types that torch can't look for infinite values in as they are.
_NARROW = (torch.float8_e4m3fn, torch.float8_e5m2)


def check_computable(source: Source, name: str) -> None:
    """Raises UserError for a tensor of a type that says nothing without what belongs to it, such as integers.

    Tables that models look up (which expert a token goes to) may be integers: they are no module's weight or bias.
    """
    info = source.tensors[name]
    if info.dtype not in COMPUTABLE and name.endswith((".weight", ".bias")):
        known = ", ".join(COMPUTABLE)
        raise UserError(f"{source.folder / info.shard}: {name} is stored as {info.dtype}; computed with are {known}")


def take(file: Any, name: str, info: TensorInfo) -> torch.Tensor:
    """A tensor out of an open safetensors file of its checkpoint, whole stacks of experts left where they are."""
    stored = info.name or name
    if info.scale is not None:
        return widened(file.get_tensor(stored), info)
    if info.cut is None:
        found: torch.Tensor = file.get_tensor(stored)
        return found
    return _part(file.get_slice(stored)[info.cut.expert], info.cut).contiguous()


def widened(stored: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """A weight (out, in) in 8-bit floats as what it is read as: times the scales of its blocks."""
    scale = info.scale
    assert scale is not None
    with artifacts.open_tensors(scale.file) as file:
        scales = file.get_tensor(scale.name).float()
    rows, columns = stored.shape
    spread = scales.repeat_interleave(scale.block[0], 0)[:rows].repeat_interleave(scale.block[1], 1)[:, :columns]
    found: torch.Tensor = (stored.float() * spread).to(COMPUTABLE[info.dtype])
    return found


def slot(stored: torch.Tensor, info: TensorInfo) -> torch.Tensor:
    """The part of a stored tensor that a tensor of the model is: a view."""
    return stored if info.cut is None else _part(stored[info.cut.expert], info.cut)


def _part(matrix: torch.Tensor, cut: Cut) -> torch.Tensor:
    return (matrix.T if cut.transposed else matrix)[cut.rows]


def check_finite(where: str, tensor: torch.Tensor) -> None:
    """Raises UserError naming ``where`` for NaN or infinite values; passes types that have none."""
    if tensor.dtype in _NARROW:
        tensor = tensor.float()
    if tensor.dtype.is_floating_point and tensor.dtype in COMPUTABLE.values() and not torch.isfinite(tensor).all():
        raise UserError(f"{where}: holds NaN or infinite values; the checkpoint is broken, fetch it again")


def read_shard(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of one file, by name, and its metadata.

    Raises UserError where it is missing or broken.
    """
    with artifacts.open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in sorted(file.keys())}, dict(file.metadata() or {})
