"""Where and in which type is computed, by the names that users give."""

from __future__ import annotations

import torch

from mixprec.core.errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(name: str) -> None:
    """Raises UserError for a device that torch does not know, or that is not in this machine."""
    if name == "auto":
        return
    try:
        device = torch.device(name)
        there = device.type == "cpu" or _has(device)
    except RuntimeError:
        raise UserError(f"device: {name!r} is none; write cpu, cuda, mps, or auto for several GPUs") from None
    if not there:
        raise UserError(f"device: {name} is not in this machine, or this build of torch can't use it; write cpu")


def _has(device: torch.device) -> bool:
    module = torch.get_device_module(device)
    return bool(module.is_available()) and (device.index or 0) < module.device_count()


def one_device(name: str) -> str:
    """A single device for what can't be spread over several: of ``auto`` the first GPU, or the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def quickest_dtype(device: str) -> str:
    """The type whose products take least time there: bfloat16 where the processor has instructions for them, else
    float32. Without them bfloat16 takes some four times as long."""
    kind = torch.device(one_device(device)).type
    if kind == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if kind == "cpu" else {}
    return "bfloat16" if any(known.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else "float32"


def dtype_of(name: str) -> torch.dtype:
    """The type to compute in; raises UserError for another than DTYPES."""
    if name not in DTYPES:
        raise UserError(f"dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]
