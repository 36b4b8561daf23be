"""What a checkpoint's config.json says of quantization: by a format that is read here, or a refusal that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from mixprec.checkpoint.packings import PACKINGS, mlx
from mixprec.checkpoint.said import Said
from mixprec.core.errors import UserError, from_pydantic

CONFIG: Final = "config.json"
#: Where in config.json weights are said to be quantized.
_PLACES: Final = (
    ("quantization_config",),
    ("compression_config",),
    ("text_config", "quantization_config"),
    ("quantization",),
)
#: Those of them that are keys of config.json itself.
KEYS: Final = tuple(place[0] for place in _PLACES if len(place) == 1)
#: Files beside it in which quantizers say it, and their names.
_FILES: Final = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt"}
_NAMES: Final = {
    "auto-round": "AutoRound",
    "awq": "AWQ",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "fp8": "FP8",
    "gptq": "GPTQ",
    "hqq": "HQQ",
    "mlx": "MLX",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
}
#: Keys of what quantizers have several kinds of.
_KINDS: Final = ("format", "version", "mode", "bnb_4bit_quant_type", "fmt", "quant_algo")
#: What to do with weights that another method quantized.
REMEDY: Final = (
    "give the original model; packed weights are read of compressed-tensors (pack-quantized), GPTQ, AWQ (gemm), "
    "MLX (affine) and GGUF files"
)


def find(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a config.json says of quantization, wherever it stands; None where it says nothing.

    Raises UserError as ``places`` does.
    """
    return next(iter(places(config).values()), None)


def places(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a config.json says of quantization, by the key where it stands; the same, where there are several.

    Raises UserError where that is no object, or two places say different things.
    """
    said: dict[str, dict[str, Any]] = {}
    for place in _PLACES:
        found: Any = config
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is not None and not isinstance(found, dict):
            raise UserError(f"{'.'.join(place)}: expected a JSON object, found {type(found).__name__}")
        if found:
            said[".".join(place)] = found
    first = next(iter(said), None)
    for name, other in said.items():
        if first is not None and other != said[first]:
            raise UserError(f"{name} says something else than {first}; remove the one that is wrong")
    return said


def described(said: Mapping[str, Any]) -> str:
    """Which quantizer that is: ``AWQ, 4 bits``."""
    method = _method(said) or "an unknown method"
    kind = next((said[key] for key in _KINDS if said.get(key)), None)
    bits = next((said[key] for key in ("bits", "w_bit", "nbits") if said.get(key)), None)
    bits = bits or (4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") else None)
    return ", ".join([_NAMES.get(method, method), *([str(kind)] if kind else []), *([f"{bits} bits"] if bits else [])])


def _method(said: Mapping[str, Any]) -> str:
    """The quantizer's name; empty where nothing names one. MLX names none."""
    return str(said.get("quant_method") or ("mlx" if mlx.is_said(said) else ""))


def by_files(folder: Path) -> str | None:
    """Which quantizer left its own configuration beside config.json, or None."""
    return next((f"{name} ({file})" for file, name in _FILES.items() if (folder / file).is_file()), None)


def read(folder: Path, config: Mapping[str, Any]) -> Said | None:
    """What ``config``, the folder's config.json, says of its packed weights; None where there are none.

    Raises UserError for what another method quantized, naming it, and for keys and values that are not understood.
    """
    try:
        found = places(config)
    except UserError as problem:
        raise UserError(f"{folder / CONFIG}: {problem}") from None
    if not found:
        return None
    place, said = next(iter(found.items()))
    packing = PACKINGS.get(_method(said))
    key = "quant_method" if packing is None else packing.said.unreadable(said)
    if packing is None or key or place not in packing.places:
        where = ".".join(filter(None, (place, key)))
        raise UserError(
            f"{folder / CONFIG}: {where}: quantized already by {described(said)}, which is not read here; {REMEDY}"
        )
    try:
        return packing.said.model_validate(said)
    except ValidationError as problem:
        raise from_pydantic(problem, f"{folder / CONFIG}: {place}", packing.said) from None
