"""``mixprec run``: walk the stages that a recipe needs, skip what is done, and end with summary.json and a report.

Run folder::

    recipe.yaml  spans.jsonl  importance/  sensitivity/  ablation/  evaluation/{spans.jsonl,reference.safetensors}
    variants/<name>/{plan.json,layout.json,quality.json,checkpoint/,result.json,tokens.json,benchmarks.json}
    summary.json  report.html  *.png
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mixprec.core import lazy

if TYPE_CHECKING:
    from mixprec.pipeline.annotating import annotate_traces as annotate_traces
    from mixprec.pipeline.checks import checked as checked
    from mixprec.pipeline.explain import explain as explain
    from mixprec.pipeline.explain import rows as rows
    from mixprec.pipeline.loadable import check_variant as check_variant
    from mixprec.pipeline.run import Run as Run
    from mixprec.pipeline.tables import identity_here as identity_here
    from mixprec.pipeline.tables import table_for as table_for

#: Checking a recipe needs no torch, running it does: each name brings its own module.
_NAMES: Final = {
    "Run": "mixprec.pipeline.run",
    "annotate_traces": "mixprec.pipeline.annotating",
    "check_variant": "mixprec.pipeline.loadable",
    "checked": "mixprec.pipeline.checks",
    "explain": "mixprec.pipeline.explain",
    "identity_here": "mixprec.pipeline.tables",
    "rows": "mixprec.pipeline.explain",
    "table_for": "mixprec.pipeline.tables",
}
__getattr__, __dir__ = lazy.attributes(__name__, _NAMES)
