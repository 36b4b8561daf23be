"""What all functions of the API do with their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mixprec.core.errors import UserError, from_pydantic
from mixprec.models.model import Model
from mixprec.results.checkpoint import Checkpoint
from mixprec.results.plan import Plan

Kind = TypeVar("Kind", bound=BaseModel)

#: Where a model is expected its id, folder or GGUF file will do.
AnyModel = Model | str | Path


def checked(kind: type[Kind], function: str, **values: Any) -> Kind:
    """A recipe's part from arguments, with the recipe's checks. Raises UserError naming all that are wrong."""
    try:
        return kind.model_validate(values)
    except ValidationError as problem:
        raise from_pydantic(problem, f"mixprec {function}", kind) from None


def given(**values: Any) -> dict[str, Any]:
    """The arguments that were given: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


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
