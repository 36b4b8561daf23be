"""``mixprec run``: walk the stages that a recipe needs, skip what is done, and end with summary.json and a report.

Run folder::

    recipe.yaml  spans.jsonl  importance/  sensitivity/  ablation/  evaluation/{spans.jsonl,reference.safetensors}
    variants/<name>/{plan.json,quality.json,checkpoint/,result.json,benchmarks.json}
    summary.json  report.html  *.png
"""

from mixprec.pipeline.annotating import annotate_traces
from mixprec.pipeline.checks import checked
from mixprec.pipeline.explain import explain, rows
from mixprec.pipeline.loadable import check_variant
from mixprec.pipeline.plans import identity_here, table_for
from mixprec.pipeline.run import Run

__all__ = ["Run", "annotate_traces", "check_variant", "checked", "explain", "identity_here", "rows", "table_for"]
