from __future__ import annotations

import torch

from mixprec.compress.rtn import rtn
from mixprec.numerics.formats import Format
from mixprec.numerics.groupwise import dequantize


def test_no_other_point_of_the_grid_is_nearer() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    for format in (Format(3, 8), Format(4, 8, symmetric=False)):
        quantized = rtn(weight, format)
        error = (weight - dequantize(quantized, format, torch.float32)).abs()
        for code in range(-128, 256):
            lowest, highest = int(quantized.codes.min()), int(quantized.codes.max())
            if lowest <= code <= highest:
                other = quantized._replace(codes=torch.full_like(quantized.codes, code))
                assert bool((error <= (weight - dequantize(other, format, torch.float32)).abs() + 1e-6).all())
