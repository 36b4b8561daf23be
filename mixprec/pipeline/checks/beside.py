"""Models that a recipe compares its own with: known, and of the same modules."""

from __future__ import annotations

from mixprec.core.errors import UserError
from mixprec.models.model import Model
from mixprec.pipeline.checks.findings import Findings
from mixprec.recipe import Recipe


def check(chosen: Recipe, model: Model, found: Findings) -> None:
    """Read the configurations of ``shift.models`` alone."""
    for name, spec in (chosen.shift.models if chosen.shift else {}).items():
        with found.trying(f"shift.models.{name}"):
            other = spec.as_model(model.dtype, model.device)
            ours, theirs = ([each.address for each in one.decoder.linears] for one in (model, other))
            if ours != theirs:
                raise UserError(
                    f"{spec.id}: has {len(theirs)} linear modules, {model.id} has {len(ours)}, and not the same ones; "
                    "name a model of the same architecture and depth"
                )
            if other.here is None:
                found.unchecked.append(f"shift.models.{name}: the files of {spec.id}, which are not on this machine")
