"""tune: a compressed model's scales and norms, by what its original predicts."""

from __future__ import annotations

from pathlib import Path

from mixprec.api.arguments import positive
from mixprec.api.checking import AnyModel, calibration_for, checkpoint_of, model_of
from mixprec.core.arguments import typed
from mixprec.core.progress import OnStep, telling
from mixprec.results.calibration import Calibration
from mixprec.results.checkpoint import Checkpoint
from mixprec.tune.options import TuneOptions
from mixprec.tune.packed import tune_packed
from mixprec.tune.tuning import Lessons, Tuning
from mixprec.walk.options import MEMORY_GB


@typed()
def tune(
    checkpoint: Checkpoint | AnyModel,
    original: AnyModel,
    out: str | Path,
    *,
    calibration: Calibration,
    validation: Calibration,
    options: TuneOptions | None = None,
    base_model: str | None = None,
    memory_gb: float = MEMORY_GB,
    progress: OnStep | None = None,
) -> Checkpoint:
    """Write a packed ``checkpoint``, whoever made it, again with tuned scales and norms: same codes, format and bytes.

    They move so that the model predicts what the ``original`` does on the samples of ``calibration``; ``validation``,
    of other samples (``skip`` in ``calibrate``), decides when to stop. ``options``: what moves, and how. ``memory_gb``:
    10^9 bytes of the original's states in memory; more of them go to the disk. A killed call continues.

    Raises UserError for dense and GGUF checkpoints, which are tuned while they are made (``tune`` in ``compress``), an
    original of another model, samples that are in both sets, and where nothing is gained: then nothing is written.
    """
    positive("tune", memory_gb=memory_gb)
    model = model_of(original)
    calibration_for(model, calibration)
    calibration_for(model, validation)
    tuning = Tuning(Lessons(calibration, validation), options or TuneOptions(), memory_gb=memory_gb)
    with telling(progress):
        tune_packed(tuning, checkpoint_of(checkpoint, model), model, Path(out), base_model)
    return Checkpoint(Path(out))
