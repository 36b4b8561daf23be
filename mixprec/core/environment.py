"""What libraries read from the environment when they are loaded, and what the same bytes need of it."""

from __future__ import annotations

import os
from typing import Final

VARIABLES: Final = {
    # OpenMP threads that wait for one another sleep instead of spinning. On a box that is shared, spinning made two
    # threads five times slower than one.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Without it, MKL's sums depend on where in memory a matrix happens to lie (seen on AMD), and a run that was killed
    # and continued would not end with the same bytes. Costs no measurable time.
    "MKL_CBWR": "AUTO",
    # The same number of threads every time: MKL takes fewer on a busy machine, and their sums come in another order.
    "MKL_DYNAMIC": "FALSE",
}


def settle() -> None:
    """Set those of VARIABLES that are not set yet. Call it before torch is imported: libraries read them once.

    The command line does; importing mixprec never does.
    """
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
