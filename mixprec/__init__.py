"""mixprec: find out which weights a model reasons with, and spend the bits there.

The flow, one stage per verb and artifact (docs/architecture.md)::

    traces -> annotate -> attribute -> plan -> compress -> evaluate -> report
"""

__version__ = "0.1.0"
