"""A model's calibration set."""

from __future__ import annotations

from mixprec.calibration import data
from mixprec.calibration.sources import Locate
from mixprec.calibration.spec import CalibrationSpec
from mixprec.models.model import Model
from mixprec.results.calibration import Calibration


def calibrate(spec: CalibrationSpec, model: Model, locate: Locate, solves: bool) -> Calibration:
    """The set that ``spec`` asks for; ``solves``: whether a method solves with the second moments of the inputs.

    Raises UserError as data.load does.
    """
    config = model.config
    found = data.load(spec, model.encoder, locate, config.max_position_embeddings)
    said = data.warnings(found, model.decoder.widest_input if solves else None, config.hidden_size)
    made = found.tokens, found.weights, found.described, found.digest
    return Calibration(*made, tuple(said), model.encoder.vocabulary)
