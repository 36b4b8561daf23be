"""What machines do in a second, for estimates: measured where it could be, else off data sheets, or assumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Rates(NamedTuple):
    """``products``: operations a second of matrix products by type; ``moments``: of sums of second moments, which are
    taken in float32, None: as ``products``. A solve that goes column by column takes ``column`` seconds for each
    column, and ``column_weight`` for each weight. ``step``, ``row``: seconds of a step of decoding for each parameter,
    and for each parameter and row. ``disk``: bytes a second that are read, written and hashed. ``weight``: how much
    faster than the processor of CPU it is at what is said in seconds for each weight."""

    name: str
    products: Mapping[str, float]
    moments: float | None
    column: float
    column_weight: float
    step: float
    row: float
    disk: float
    weight: float = 1.0


#: One core of a 2-core AMD EPYC with float32 and bfloat16 products in hardware; measured, where the recipes' own times
#: (recipes/README.md) were taken. ``auto`` may be either type: the one that takes more.
CPU: Final = Rates(
    "one core of a 2-core AMD EPYC",
    {"float32": 1.0e11, "bfloat16": 1.9e11, "float16": 1.0e11, "auto": 1.0e11},
    moments=None,
    column=1.2e-4,
    column_weight=1.2e-7,
    step=8.0e-10,
    row=1.2e-10,
    disk=4.0e8,
)

#: Of what a data sheet promises, so much is counted on. Assumed.
SHARE: Final = 0.4
#: NVIDIA's data sheet of the H200 SXM: operations a second without sparsity, bytes a second and bytes of memory.
BFLOAT16: Final = 989e12
FLOAT32: Final = 67e12
MEMORY_RATE: Final = 4.8e12
H200_MEMORY: Final = 141_000_000_000

#: By the data sheet and SHARE. Not measured: a column is some ten kernels of 10 µs each, a weight of a solve goes
#: through memory 64 times as it is read and written (blocks of 128 columns), a parameter in bfloat16 once for a token.
H200: Final = Rates(
    "one NVIDIA H200, by its data sheet",
    {
        "bfloat16": SHARE * BFLOAT16,
        "float16": SHARE * BFLOAT16,
        "float32": SHARE * FLOAT32,
        "auto": SHARE * FLOAT32,
    },
    moments=SHARE * FLOAT32,
    column=1.0e-4,
    column_weight=64 * 8 / (SHARE * MEMORY_RATE),
    step=2 / (SHARE * MEMORY_RATE),
    row=2 / (SHARE * BFLOAT16),
    disk=2.0e9,
    weight=100.0,
)
