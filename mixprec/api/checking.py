"""What the functions of the API do with models and plans that they are given."""

from __future__ import annotations

from pathlib import Path

from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.results.calibration import Calibration
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.plan import Plan

#: Where a model is expected its id, folder or GGUF file will do.
AnyModel = Model | str | Path


def model_of(what: AnyModel) -> Model:
    """A model by itself, or by its id."""
    return what if isinstance(what, Model) else Model(what)


def checkpoint_of(what: Checkpoint | AnyModel, like: Model | None = None) -> Model:
    """The model in a checkpoint, computed with as ``like`` is, where there is one."""
    if isinstance(what, Model):
        return model_of(what)
    where = what.folder if isinstance(what, Checkpoint) else what
    return Model(where, **({} if like is None else {"dtype": like.dtype, "device": like.device}))


def same_model(model: Model, made_for: Model, what: str) -> None:
    """Raises UserError where ``what`` was made for a model with other files."""
    if model is not made_for and model.identity != made_for.identity:
        raise UserError(
            f"{what}: is for {made_for.id} with the identity {made_for.identity[:12]}…, {model.id} has "
            f"{model.identity[:12]}…; make it again for this model"
        )


def plan_for(model: Model, plan: Plan) -> None:
    """Raises UserError for the plan of another model."""
    same_model(model, plan.model, "plan")


def calibration_for(model: Model, calibration: Calibration | None) -> None:
    """Raises UserError for the tokens of another model's tokenizer."""
    made_by = calibration.vocabulary if calibration else ""
    if made_by and made_by != model.encoder.vocabulary:
        raise UserError(
            f"calibration: its tokens are of another tokenizer than {model.id}'s; make it with "
            f"mixprec.calibrate({model.id!r}, …)"
        )
