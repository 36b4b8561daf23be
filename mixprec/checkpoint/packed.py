"""What the packed formats share of tensors: a module's own ones, and its integer codes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mixprec.checkpoint.target import CompressedModule
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import Quantized


def local(address: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's tensors by their names within it."""
    prefix = f"{address}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def codes_of(module: CompressedModule) -> tuple[Quantized, Format]:
    """The integer codes of a module that a packed format can hold."""
    assert isinstance(module.quantized, Quantized)
    assert isinstance(module.format, Format)
    return module.quantized, module.format
