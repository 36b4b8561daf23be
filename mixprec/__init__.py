"""mixprec: find out which weights a model reasons with, and spend the bits there.

The flow, one stage per verb and artifact (docs/architecture.md)::

    traces -> annotate -> attribute -> plan -> compress -> evaluate -> report

Importing it costs nothing and changes nothing: a public name brings its module, and torch with it, when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mixprec.core import lazy
from mixprec.core.version import VERSION

if TYPE_CHECKING:
    from mixprec.api.agreement import agreement as agreement
    from mixprec.api.annotating import Judge as Judge
    from mixprec.api.annotating import annotate as annotate
    from mixprec.api.calibrating import calibrate as calibrate
    from mixprec.api.distilling import distill as distill
    from mixprec.api.importing import import_traces as import_traces
    from mixprec.api.judge import bench as bench
    from mixprec.api.judge import evaluate as evaluate
    from mixprec.api.judge import save_reference as save_reference
    from mixprec.api.look import attribute as attribute
    from mixprec.api.look import traces as traces
    from mixprec.api.make import compress as compress
    from mixprec.api.make import quantize_ as quantize_
    from mixprec.api.procedural import make_traces as make_traces
    from mixprec.api.review import review as review
    from mixprec.api.runs import compare_runs as compare_runs
    from mixprec.api.runs import quantize as quantize
    from mixprec.api.runs import quantize_recipe as quantize_recipe
    from mixprec.api.runs import report as report
    from mixprec.api.runs import run as run
    from mixprec.api.spend import Budget as Budget
    from mixprec.api.spend import plan as plan
    from mixprec.api.spend import sensitivity as sensitivity
    from mixprec.api.tuning import tune as tune
    from mixprec.api.updates import updates as updates
    from mixprec.compress.options import SolveOptions as SolveOptions
    from mixprec.core.errors import UserError as UserError
    from mixprec.core.progress import Step as Step
    from mixprec.distill.options import DistillOptions as DistillOptions
    from mixprec.evaluate.engines.openai import Server as Server
    from mixprec.models.model import Model as Model
    from mixprec.pipeline.executors.placement import Placement as Placement
    from mixprec.recipe.schema import Recipe as Recipe
    from mixprec.results.agreement import Agreement as Agreement
    from mixprec.results.base import Picture as Picture
    from mixprec.results.base import View as View
    from mixprec.results.benchmarks import BenchResult as BenchResult
    from mixprec.results.calibration import Calibration as Calibration
    from mixprec.results.checkpoint import Checkpoint as Checkpoint
    from mixprec.results.comparison import Comparison as Comparison
    from mixprec.results.distilled import Distilled as Distilled
    from mixprec.results.evaluation import Evaluation as Evaluation
    from mixprec.results.importance import Importance as Importance
    from mixprec.results.likelihood import LikelihoodResult as LikelihoodResult
    from mixprec.results.plan import Plan as Plan
    from mixprec.results.run import RunResult as RunResult
    from mixprec.results.scores import Scores as Scores
    from mixprec.results.spans import Imported as Imported
    from mixprec.results.spans import Spans as Spans
    from mixprec.results.spans import Traces as Traces
    from mixprec.tune.blockoptions import TuneBlocks as TuneBlocks
    from mixprec.tune.options import TuneOptions as TuneOptions

__version__ = VERSION

#: Public name -> the module that has it. Type checkers read the imports above; a test compares the two.
_PUBLIC: Final = {
    "Agreement": "mixprec.results.agreement",
    "BenchResult": "mixprec.results.benchmarks",
    "LikelihoodResult": "mixprec.results.likelihood",
    "Budget": "mixprec.api.spend",
    "Calibration": "mixprec.results.calibration",
    "Checkpoint": "mixprec.results.checkpoint",
    "Comparison": "mixprec.results.comparison",
    "DistillOptions": "mixprec.distill.options",
    "Distilled": "mixprec.results.distilled",
    "Evaluation": "mixprec.results.evaluation",
    "Importance": "mixprec.results.importance",
    "Imported": "mixprec.results.spans",
    "Judge": "mixprec.api.annotating",
    "Model": "mixprec.models.model",
    "Picture": "mixprec.results.base",
    "Placement": "mixprec.pipeline.executors.placement",
    "Plan": "mixprec.results.plan",
    "Recipe": "mixprec.recipe.schema",
    "RunResult": "mixprec.results.run",
    "Scores": "mixprec.results.scores",
    "Server": "mixprec.evaluate.engines.openai",
    "SolveOptions": "mixprec.compress.options",
    "Spans": "mixprec.results.spans",
    "Step": "mixprec.core.progress",
    "Traces": "mixprec.results.spans",
    "TuneBlocks": "mixprec.tune.blockoptions",
    "TuneOptions": "mixprec.tune.options",
    "UserError": "mixprec.core.errors",
    "View": "mixprec.results.base",
    "agreement": "mixprec.api.agreement",
    "annotate": "mixprec.api.annotating",
    "attribute": "mixprec.api.look",
    "bench": "mixprec.api.judge",
    "calibrate": "mixprec.api.calibrating",
    "compare_runs": "mixprec.api.runs",
    "compress": "mixprec.api.make",
    "distill": "mixprec.api.distilling",
    "evaluate": "mixprec.api.judge",
    "import_traces": "mixprec.api.importing",
    "make_traces": "mixprec.api.procedural",
    "plan": "mixprec.api.spend",
    "quantize": "mixprec.api.runs",
    "quantize_": "mixprec.api.make",
    "quantize_recipe": "mixprec.api.runs",
    "report": "mixprec.api.runs",
    "review": "mixprec.api.review",
    "run": "mixprec.api.runs",
    "save_reference": "mixprec.api.judge",
    "sensitivity": "mixprec.api.spend",
    "traces": "mixprec.api.look",
    "tune": "mixprec.api.tuning",
    "updates": "mixprec.api.updates",
}


__getattr__, __dir__ = lazy.attributes(__name__, _PUBLIC)
__all__ = [*_PUBLIC]
