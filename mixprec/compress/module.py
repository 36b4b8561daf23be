"""One module's weight through one method, with the checks and the measurement that every engine needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from mixprec.compress.rtn import rtn
from mixprec.errors import UserError
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import Quantized, dequantize

#: The methods that a plan may name.
METHODS: dict[str, Callable[[torch.Tensor, Format], Quantized]] = {"rtn": rtn}


class ModuleReport(NamedTuple):
    """``relative_error``: ‖W − Ŵ‖ / ‖W‖ in Frobenius norms, 0 for a module that is kept."""

    format: str
    relative_error: float


#: Called with each module's address and report as it is done.
OnModule = Callable[[str, ModuleReport], None]


def compress_weight(
    where: str, weight: torch.Tensor, format: Format, method: str
) -> tuple[Quantized, torch.Tensor, ModuleReport]:
    """Codes and grid of ``weight`` (out, in), finite, the values they stand for in its type, and the error.

    Raises UserError naming ``where`` for weights too large for 16-bit scales.
    """
    quantized = METHODS[method](weight, format)
    restored = dequantize(quantized, format, weight.dtype)
    if not torch.isfinite(restored).all():
        raise UserError(
            f"{where}: weights up to {weight.abs().max().item():.3g} are too large for {format} "
            "with scales in 16 bits; keep this module"
        )
    return quantized, restored, ModuleReport(str(format), relative_error(weight, restored))


def check_finite(where: str, tensor: torch.Tensor) -> None:
    """Raises UserError naming ``where`` for NaN or infinite values; passes integers."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UserError(f"{where}: holds NaN or infinite values; the checkpoint is broken, fetch it again")


def relative_error(weight: torch.Tensor, restored: torch.Tensor) -> float:
    """‖W − Ŵ‖ / ‖W‖, both of one shape; sums in float32 or wider. 0 where both are all zeros."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norm = float(torch.linalg.vector_norm(wide))
    error = float(torch.linalg.vector_norm(wide - restored))
    return error / norm if norm else error
