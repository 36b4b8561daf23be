"""Scorers: from sums to the predicted damage of every module in every candidate. One function each, registered below.

``fisher`` and ``first_order`` are in nats of KL per predicted token; the others are in units of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.sensitivity.evidence import Errors, Evidence
from mixprec.sensitivity.spec import Scorer
from mixprec.walk.losses import Loss


@dataclass(frozen=True)
class Question:
    """What a table is asked for: damage on ``target``, of whose tokens ``count`` were scored.

    ``importance``: relative importance (M,) for this target, where it was computed. ``passages`` (P,): how often each
    passage counts, for resampling; None for once.
    """

    evidence: Evidence | None
    errors: Errors
    target: str
    count: float
    importance: Tensor | None = None
    passages: Tensor | None = None

    @property
    def squares(self) -> Loss:
        """The loss whose gradients are squared: the model's own distribution's, else the text's."""
        return "fisher" if self._has("fisher") else "loss"

    @property
    def slopes(self) -> Loss:
        """The loss whose gradients say where damage goes: the KL's, or at the original, where that is 0, the text's."""
        return "kl" if self._has("kl") else "loss"

    def _has(self, loss: Loss) -> bool:
        return self.evidence is not None and any(row.loss == loss for row in self.evidence.rows)

    def total(self, name: str, loss: Loss | None = None) -> Tensor:
        """A sum over passages: of the target's gradients of this loss, averaged over draws, or of all tokens."""
        assert self.evidence is not None
        found: Tensor = getattr(self.evidence, name)
        if loss is not None:
            rows = [n for n, row in enumerate(self.evidence.rows) if row.target == self.target and row.loss == loss]
            found = found[:, :, rows].mean(2)
        if self.passages is not None:
            found = found * self.passages.reshape(-1, *[1] * (found.dim() - 1))
        return found.sum(0)


def _fisher(asked: Question) -> Tensor:
    """½ Σ_t (g_tᵀ ΔW x_t)² per token."""
    return asked.total("square", asked.squares) / (2 * asked.count)


def _first_order(asked: Question) -> Tensor:
    """|Σ_t g_tᵀ ΔW x_t| per token: of the KL where the gradients' model is compressed, else of the text's loss."""
    return asked.total("slope", asked.slopes).abs() / asked.count


def _hessian_trace(asked: Question) -> Tensor:
    """½ tr(F) / n ‖ΔW‖², F the Fisher information of the module's n weights (HAWQ-V2, arXiv 1911.03852)."""
    trace = asked.total("trace", asked.squares)[:, None]
    return trace / asked.errors.size * asked.errors.weight / (2 * asked.count)


def _gradient_output(asked: Question) -> Tensor:
    """½ Σ_t Σ_i g_ti² y_ti²: as if outputs did not act together (what ModelOpt's auto_quantize sums)."""
    return asked.total("product", asked.squares) / (2 * asked.count)


def _output_error(asked: Question) -> Tensor:
    """Σ_t ‖ΔW x_t‖²."""
    return asked.total("output")


def _importance(asked: Question) -> Tensor:
    """Relative importance of the module, RI, times its relative weight error ‖ΔW‖² / ‖W‖²."""
    if asked.importance is None:
        raise UserError(
            "sensitivity.scorer: importance needs importance.json; add importance: {} and traces to the recipe, or "
            f"give --importance, whose traces have spans of what is scored, here {asked.target}"
        )
    return asked.importance[:, None] * asked.errors.weight / asked.errors.norm


def _updates(asked: Question) -> Tensor:
    """Σ_j I_j ‖ΔW_j‖² over input channels j, I_j by what fine-tuning changed in them (QuantLRM, arXiv 2602.02581)."""
    if asked.errors.updates is None:
        raise UserError(
            "sensitivity.scorer: updates needs the base of the model; add compress: {fine_tuned_from: {id: …}} to the "
            "recipe, or give --fine-tuned-from"
        )
    return asked.errors.updates


SCORERS: Mapping[Scorer, Callable[[Question], Tensor]] = {
    "fisher": _fisher,
    "first_order": _first_order,
    "hessian_trace": _hessian_trace,
    "gradient_output": _gradient_output,
    "output_error": _output_error,
    "imatrix": lambda asked: asked.errors.imatrix,
    "awq": lambda asked: asked.errors.awq,
    "weight_error": lambda asked: asked.errors.weight,
    "importance": _importance,
    "updates": _updates,
}


def damage(scorer: Scorer, asked: Question) -> Tensor:
    """(M, C) predicted damage.

    Raises UserError where it is NaN or infinite, and for importance without importance.json.
    """
    found = SCORERS[scorer](asked)
    if not torch.isfinite(found).all():
        raise UserError(f"sensitivity: {scorer}: scores are NaN or infinite; compute in float32 (model.dtype)")
    return found
