"""From a plan to a compressed model: compress, quantize_."""

from __future__ import annotations

from pathlib import Path

from mixprec.api.checking import AnyModel, model_of, plan_for
from mixprec.checkpoint.formats import checkpoint_format
from mixprec.compress import stream
from mixprec.compress.options import SolveOptions
from mixprec.core.devices import one_device
from mixprec.core.float64 import check_float64
from mixprec.core.progress import OnStep, bar, telling
from mixprec.results.calibration import Calibration
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.plan import Plan


def compress(
    model: AnyModel,
    plan: Plan,
    out: str | Path,
    *,
    calibration: Calibration | None = None,
    format: str = "dense",
    options: SolveOptions | None = None,
    base_model: str | None = None,
    progress: OnStep | None = None,
) -> Checkpoint:
    """Compress ``model`` as ``plan`` says, block by block; writes a checkpoint that runtimes load to ``out``.

    ``calibration``: for methods that look at inputs. ``format``: dense, compressed-tensors, gptq or gguf. ``options``:
    of the methods. ``base_model``: the model's id on the hub, for the card of a local one. A killed call goes on with
    the first block that is missing.

    Raises UserError for the plan of another model, and for what ``format`` can't hold.
    """
    model, form = model_of(model), checkpoint_format(format)
    plan_for(model, plan)
    check_float64(model.device, "compress")
    with telling(progress), bar("compress", len(plan.modules), "modules") as advance:
        reports = stream.compress(
            model.id,
            plan.content,
            Path(out),
            calibration=calibration,
            options=options or SolveOptions(),
            revision=model.revision,
            dtype=model.dtype,
            device=one_device(model.device),
            format=form,
            on_module=lambda *_: advance(1),
            base_model=base_model,
        )
    return Checkpoint(Path(out), reports)
