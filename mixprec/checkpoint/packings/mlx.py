"""Packed modules of MLX, affine: codes as a dense stream of bits along each row, an offset for each group.

Read in mlx 0.32 (mlx/ops.cpp: ``affine_quantize``, ``pack_and_quantize``, ``affine_dequantize``) and mlx-lm 0.32
(mlx_lm/utils.py: ``load_model``). A weight is scale · code + bias. Of two, four and eight bits and of the others alike
the first code lies in the lowest bits, and words follow one another without gaps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from mixprec.checkpoint.packings.packing import Packing, scale_type
from mixprec.checkpoint.patterns import Matcher
from mixprec.checkpoint.said import Grid as SaidGrid
from mixprec.checkpoint.said import Said, Strict
from mixprec.core.headers import Entry
from mixprec.models.decoder import Linear
from mixprec.numerics.formats import AffineFormat, Format, GridFormat
from mixprec.numerics.words import words

CODES, SCALES, OFFSETS = "weight", "scales", "biases"
#: What its kernels have.
BITS: Final = (2, 3, 4, 5, 6, 8)
GROUPS: Final = (32, 64, 128)


class Grid(Strict):
    """What is said of all modules, or of one."""

    bits: int
    group_size: int = Field(gt=0, lt=2**31)
    mode: Literal["affine"] = "affine"


class Config(Said):
    """``quantization`` of a config.json: the grid of most modules, and under their paths that of others, or false."""

    quant_method: Literal["mlx"] = "mlx"
    bits: int
    group_size: int = Field(gt=0, lt=2**31)
    mode: Literal["affine"] = "affine"
    modules: dict[str, Grid | bool] = Field({})

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, said: Any) -> Any:
        if not isinstance(said, dict):
            return said
        own = {key: value for key, value in said.items() if isinstance(value, dict | bool)}
        return {key: value for key, value in said.items() if key not in own} | {"modules": own}

    @classmethod
    def unreadable(cls, said: Mapping[str, Any]) -> str | None:
        """The key of a mode that has no offsets, such as mxfp4."""
        named = [("mode", said), *((f"{key}.mode", own) for key, own in said.items() if isinstance(own, dict))]
        return next((key for key, own in named if own.get("mode") not in (None, "affine")), None)

    def may_be_dense(self, module: Linear) -> bool:
        """mlx-lm looks for scales among the tensors where nothing is said of the module itself."""
        return module.address not in self.modules

    def grid(self, module: Linear, patterns: Matcher) -> SaidGrid | None:
        """What is said of a module; None where it is not quantized."""
        own = self.modules.get(module.address, True)
        chosen = own if isinstance(own, Grid) else self if own else None
        return None if chosen is None else SaidGrid(chosen.bits, chosen.group_size, None)


def is_said(said: Mapping[str, Any]) -> bool:
    """Whether a quantization that names no method is MLX's: grids alone, of all modules and of single ones."""
    plain = {key for key, value in said.items() if not isinstance(value, dict | bool)}
    return {"bits", "group_size"} <= plain <= {"bits", "group_size", "mode"}


def _shapes(module: Linear, format: GridFormat) -> dict[str, Sequence[tuple[int, ...]]]:
    return {name: [each.shape] for name, each in _tensors(module, format, "BF16").items()}


def _tensors(module: Linear, format: GridFormat, dtype: str) -> dict[str, Entry]:
    """What is written here, by names within the module."""
    rows, columns = module.out_features, module.in_features
    numbers = Entry(scale_type(dtype), (rows, format.groups(columns)))
    return {CODES: Entry("U32", (rows, words(columns, format.bits))), SCALES: numbers, OFFSETS: numbers}


PACKING = Packing(
    mark=OFFSETS,
    parts=frozenset({CODES, SCALES, OFFSETS}),
    said=Config,
    shapes=_shapes,
    tensors=_tensors,
    kinds=(Format, AffineFormat),
    places=("quantization", "quantization_config"),
)
