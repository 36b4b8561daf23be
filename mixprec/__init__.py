"""mixprec: find out which weights a model reasons with, and spend the bits there.

The flow, one stage per verb and artifact (docs/architecture.md)::

    traces -> annotate -> attribute -> plan -> compress -> evaluate -> report
"""

import os

# Before torch is imported: OpenMP threads that wait for one another sleep instead of spinning. On a box that is
# shared, spinning made two threads five times slower than one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before the first matrix product: without it, MKL's sums depend on where in memory a matrix happens to lie (seen on
# AMD), and a run that was killed and continued would not end with the same bytes. Costs no measurable time.
os.environ.setdefault("MKL_CBWR", "AUTO")
# The same number of threads every time: MKL takes fewer on a busy machine, and their sums come in another order.
os.environ.setdefault("MKL_DYNAMIC", "FALSE")

__version__ = "0.1.0"
