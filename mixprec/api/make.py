"""From a plan to a compressed model: compress, quantize_."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from transformers import PreTrainedModel

from mixprec.api.arguments import checked, positive
from mixprec.api.checking import AnyModel, calibration_for, model_of, plan_for
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress import guided, stream
from mixprec.compress.live import check_live, compress_live
from mixprec.compress.options import SolveOptions
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError
from mixprec.core.float64 import check_float64
from mixprec.core.progress import OnStep, bar, telling
from mixprec.models.maps import decoder_of
from mixprec.numerics.products import unmixed
from mixprec.plan import schema
from mixprec.plan.methods import unguided
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.report.quality import worst_table
from mixprec.results.base import View
from mixprec.results.calibration import Calibration
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.plan import Plan
from mixprec.tune.blockoptions import TuneBlocks
from mixprec.tune.blocks import BlockTuner
from mixprec.tune.options import TuneOptions
from mixprec.tune.solved import SolvedTuning
from mixprec.tune.tuning import Lessons
from mixprec.walk.options import MEMORY_GB


@typed()
def compress(
    model: AnyModel,
    plan: Plan,
    out: str | Path,
    *,
    calibration: Calibration | None = None,
    format: str = "dense",
    options: SolveOptions | None = None,
    base_model: str | None = None,
    memory_gb: float = MEMORY_GB,
    tune_blocks: TuneBlocks | None = None,
    tune: TuneOptions | None = None,
    validation: Calibration | None = None,
    tuned_on: Calibration | None = None,
    progress: OnStep | None = None,
) -> Checkpoint:
    """Compress ``model`` as ``plan`` says, block by block; writes a checkpoint that runtimes load to ``out``.

    ``calibration``: for methods that look at inputs. ``format``: dense, compressed-tensors, gptq or gguf. ``options``:
    of the methods. ``base_model``: the model's id on the hub, for the card of a local one. ``memory_gb``: 10^9 bytes of
    calibration states in memory; more of them go to the disk. A killed call continues with the first block that is
    missing.
    ``tune_blocks``: each block's codes and scales are tuned by what the block puts out, once they are solved.
    ``tune``: scales and norms are tuned when all is solved (as ``tune`` does with a packed checkpoint), on the samples
    of ``tuned_on``, by default ``calibration``; ``validation``, other samples, decides when to stop.

    Raises UserError for the plan of another model, for what ``format`` can't hold, and for validation samples that
    anything else saw.
    """
    positive("compress", memory_gb=memory_gb)
    model, form = model_of(model), checkpoint_format(format)
    plan_for(model, plan)
    for samples in (calibration, validation, tuned_on):
        calibration_for(model, samples)
    check_float64(model.device, "compress")
    options = _checked(options, plan.content, model.dtype)
    tuning = None
    if tune is not None:
        training = tuned_on or calibration
        if training is None or validation is None:
            raise UserError(
                "compress: tune needs samples: calibration (or tuned_on), and others as validation, such as "
                "mixprec.calibrate(…, samples=8, skip=128)"
            )
        tuning = SolvedTuning(Lessons(training, validation), tune, solved_on=calibration, memory_gb=memory_gb)
    with telling(progress), _steps("compress", plan.content, options, calibration) as advance:
        reports = stream.compress(
            model.on_one_device,
            plan.content,
            Path(out),
            calibration=calibration,
            options=options,
            format=form,
            on_module=lambda *_: advance(1),
            base_model=base_model,
            memory_gb=memory_gb,
            on_sample=advance,
            refine=None if tune_blocks is None else BlockTuner(tune_blocks, calibration),
            tune=tuning,
        )
    return Checkpoint(Path(out), reports)


@typed("model")
def quantize_(
    model: PreTrainedModel,
    plan: Plan | str,
    calibration: Calibration | None = None,
    *,
    method: str = "rtn",
    options: SolveOptions | None = None,
    memory_gb: float = MEMORY_GB,
    tune_blocks: TuneBlocks | None = None,
    progress: OnStep | None = None,
) -> View:
    """Compress a loaded model of transformers in place: its linears get the values that ``compress`` would write.

    ``plan``: a Plan, or a format for all modules, made by ``method``. ``memory_gb``, ``tune_blocks``: as in
    ``compress``. Gives how well the modules were solved.

    Raises UserError before anything changes: for the plan of another model, a model without weights (meta device),
    quantized already or on several devices, and where ``method`` needs calibration data.
    """
    check_live(model)
    positive("quantize_", memory_gb=memory_gb)
    content = plan.content if isinstance(plan, Plan) else _uniform(model, plan, method)
    options = _checked(options, content, str(model.dtype).removeprefix("torch."))
    with telling(progress), _steps("quantize", content, options, calibration) as advance:
        reports = compress_live(
            model,
            content,
            calibration=calibration,
            options=options,
            on_module=lambda *_: advance(1),
            memory_gb=memory_gb,
            on_sample=advance,
            refine=None if tune_blocks is None else BlockTuner(tune_blocks, calibration),
        )
    changed = {address: report for address, report in reports.items() if report.method}
    rows = tuple({"address": address, **report._asdict()} for address, report in reports.items())
    return View(f"{len(changed)} of {len(reports)} modules", worst_table(changed), rows)


def _checked(options: SolveOptions | None, plan: schema.Plan, dtype: str) -> SolveOptions:
    """Raises UserError for guidance that no method of the plan follows, and products that ``dtype`` doesn't go with."""
    options = options or SolveOptions()
    if options.guided is not None and (problem := unguided(plan.methods, "options.guided")):
        raise UserError(problem)
    if problem := unmixed(options.products, dtype, "options.products"):
        raise UserError(problem)
    return options


def _steps(
    what: str, plan: schema.Plan, options: SolveOptions, calibration: Calibration | None
) -> AbstractContextManager[Callable[[int], None]]:
    """A bar of a plan's modules, and of the samples that go through the model before them where solves are guided."""
    swept = guided.samples_swept(plan.methods, options, calibration)
    return bar(what, swept + len(plan.modules), "samples and modules" if swept else "modules")


def _uniform(model: PreTrainedModel, format: str, method: str) -> schema.Plan:
    spec = checked(PlanSpec, "quantize_", default=format, method=method)
    return build_plan(spec, decoder_of(model.config), str(model.config.name_or_path), "rtn")
