"""Before any work: whether a recipe's checkpoints can hold its plans, and the runtime that it names loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mixprec.checkpoint import holding
from mixprec.checkpoint.check import Target, check, require
from mixprec.core.errors import UserError, said_of
from mixprec.models import locate
from mixprec.models.decoder import Decoder
from mixprec.models.kinds import has_weights
from mixprec.models.model import Model
from mixprec.numerics.formats import KEEP
from mixprec.plan.rules import PlanSpec
from mixprec.plan.schema import Plan
from mixprec.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def target_of(chosen: Recipe) -> Target | None:
    """The runtime that a recipe names, or None."""
    spec = chosen.checkpoint
    return None if spec.runtime is None else Target(spec.runtime, spec.format, spec.version, spec.device)


def check_model(chosen: Recipe, model: Model, *, planned: bool = False) -> None:
    """The recipe's ``model``, where it is a folder, is a whole checkpoint, and not quantized already where a variant
    compresses it; what is only ``planned`` needs no weights.

    Raises UserError as Model.original does. Files on the hub are not looked at.
    """
    if planned and model.id == locate.BUNDLED:
        return  # its file is the pinned one
    if locate.unconverted(model.id) is not None:
        return  # its header was checked when the configuration was read
    folder = Path(locate.resolve(model.id))
    if not folder.is_dir() or (planned and not has_weights(folder)):
        return
    compresses = any(_compresses(variant.plan) for variant in chosen.all_variants.values())
    with said_of("model.id"):
        _ = model.original if compresses else model.checkpoint


def _compresses(plan: PlanSpec) -> bool:
    """Whether a plan may change a module."""
    return plan.default != KEEP or plan.sparsity is not None or bool(plan.rules)


def refused(chosen: Recipe, plan: Plan, inventory: Decoder, config: PretrainedConfig | None) -> set[str]:
    """Addresses of the modules that the checkpoint's format or the runtime does not take; all, where it takes none."""
    found = set(_problems(chosen, plan, inventory, config))
    target = target_of(chosen)
    if target is None or found:
        return found
    verdict = check(plan, inventory, config, target)
    return set(plan.modules) if verdict.whole else set(verdict.refused)


def _problems(chosen: Recipe, plan: Plan, inventory: Decoder, config: PretrainedConfig | None) -> dict[str, str]:
    return holding.problems(chosen.checkpoint.format, plan, inventory, config)


def check_variant(chosen: Recipe, name: str, plan: Plan, inventory: Decoder, config: PretrainedConfig | None) -> None:
    """One variant's plan; ``config``: for GGUF files alone.

    Raises UserError naming the variant.
    """
    if not plan.changed:
        return  # it is the original, of which nothing is written
    try:
        holding.require(chosen.checkpoint.format, _problems(chosen, plan, inventory, config))
        target = target_of(chosen)
        if target is not None:
            require(plan, inventory, config, target)
    except UserError as problem:
        raise UserError(f"variant {name}: {problem}") from None
