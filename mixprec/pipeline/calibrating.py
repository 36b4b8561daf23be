"""A model's calibration set."""

from __future__ import annotations

from collections.abc import Sequence

from mixprec.calibration import data
from mixprec.calibration.sources import Locate
from mixprec.calibration.spec import CalibrationSpec
from mixprec.core.errors import said_of
from mixprec.models.model import Model
from mixprec.results.calibration import Calibration
from mixprec.tune.options import TuneSpec
from mixprec.tune.tuning import Lessons


def calibrate(
    spec: CalibrationSpec, model: Model, locate: Locate, solves: bool, skip: Sequence[int] = ()
) -> Calibration:
    """The set that ``spec`` asks for; ``solves``: whether a method solves with the second moments of the inputs.
    ``skip``: windows of each source that are another set's.

    Raises UserError as data.load does.
    """
    found = data.load(spec, model.encoder, locate, model.context, skip=skip)
    said = data.warnings(found, model.decoder.widest_input if solves else None, model.decoder.sizes.hidden)
    made = found.tokens, found.weights, found.described, found.digest
    return Calibration(*made, tuple(said), model.encoder.vocabulary)


def lessons(spec: TuneSpec, solved: CalibrationSpec, model: Model, locate: Locate) -> Lessons:
    """What is tuned on: the samples that modules were ``solved`` on and, where more are asked for, further ones of the
    same sources; then as many for validation.

    Raises UserError where the sources have too few windows.
    """
    chosen = spec.calibration or solved
    count = spec.samples or chosen.samples
    training = chosen.model_copy(update={"samples": count})
    # Windows of a smaller set are the first of a larger one's, so that neither saw what comes behind them.
    behind = [max(pair) for pair in zip(training.counts, chosen.counts, strict=True)]
    validation = chosen.model_copy(update={"samples": spec.validation})
    with said_of("tune"):
        return Lessons(
            calibrate(training, model, locate, solves=False),
            calibrate(validation, model, locate, solves=False, skip=behind),
        )
