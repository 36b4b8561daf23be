"""Types in a config.json's ``quantization_config``: of what is read here, by compressed-tensors and by GPTQ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mixprec.errors import UserError, from_pydantic

#: Columns that share a scale; -1 (GPTQ's) is a whole row. No row is wider than what 32 bits count.
_GroupSize = Annotated[int, Field(ge=-1, lt=2**31)]


class _Said(BaseModel):
    """Only what is read here is checked; strictly, as ``"yes"`` and 3.5 are neither flags nor numbers of bits."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Weights(_Said):
    num_bits: int | None = None
    group_size: _GroupSize | None = None
    symmetric: bool | None = None
    strategy: str | None = None


class _Group(_Said):
    targets: list[str] = []
    weights: _Weights | None = None


class _Overrides(_Said):
    bits: int | None = None
    group_size: _GroupSize | None = None
    sym: bool | None = None


class _Quantization(_Overrides):
    quant_method: str | None = None
    format: str | None = None
    checkpoint_format: str | None = None
    config_groups: dict[str, _Group] | None = None
    ignore: list[str] | None = None
    dynamic: dict[str, _Overrides] | None = None


def check(found: Any, path: Path) -> dict[str, Any]:
    """``found``, the ``quantization_config`` of the file ``path``, empty where there is none.

    Raises UserError naming file, key and value where a type or a range is wrong.
    """
    if found is None:
        return {}
    where = f"{path}: quantization_config"
    if not isinstance(found, dict):
        raise UserError(f"{where}: expected a JSON object, found {type(found).__name__}")
    try:
        _Quantization.model_validate(found)
    except ValidationError as problem:
        raise from_pydantic(problem, where, _Quantization) from None
    return found
