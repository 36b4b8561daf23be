"""What became of one module: the checks and the measurements that every method's result goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mixprec.core.errors import UserError
from mixprec.numerics.hessian import relative_output_error
from mixprec.plan.methods import pruners


class ModuleReport(NamedTuple):
    """The quality of one module's solve.

    ``relative_error``: ‖W − Ŵ‖ / ‖W‖ in Frobenius norms, 0 for a module that is kept. ``output_error``: the same of
    the module's outputs on the calibration data, √(Σ‖(W − Ŵ)x‖² / Σ‖Wx‖²), of at most 128 outputs, evenly spaced;
    None where no method looked at its inputs. (After AWQ, W is the scaled weight.) ``zeros``: share of pruned weights.
    ``damping``: what the Hessian's diagonal got, relative to its mean, after so many ``retries``. ``fallback``: the
    method that had to take over. ``scale``: mean over the module's input channels of what AWQ scales them by for
    their inputs' sake, E|x|^ratio, before it is normalised (arXiv 2504.02010, appendix M). ``tuned``: the squared error
    of the block's output after the block was tuned over that before, on samples that it was not tuned on, 1 where that
    was refused; ``output_error`` is from before. ``tokens``: calibration tokens that the router sent to its expert.
    """

    format: str
    relative_error: float
    method: str = ""
    output_error: float | None = None
    zeros: float = 0.0
    damping: float | None = None
    retries: int = 0
    fallback: str = ""
    scale: float | None = None
    tuned: float | None = None
    tokens: int | None = None


#: Called with each module's address and report as it is done.
OnModule = Callable[[str, ModuleReport], None]

#: Outputs whose error is measured.
_OUTPUTS = 128

KEPT = ModuleReport("keep", 0.0)
#: Of an expert that is left out.
DROPPED = ModuleReport("drop", 1.0)


def measure(where: str, weight: Tensor, restored: Tensor, hessian: Tensor | None, report: ModuleReport) -> ModuleReport:
    """``report`` with the errors of ``restored`` in the place of ``weight``, both (out, in).

    Raises UserError naming ``where`` for weights too large for their format's 16-bit scales.
    """
    if not torch.isfinite(restored).all():
        raise UserError(
            f"{where}.weight: weights up to {weight.abs().max().item():.3g} are too large for {report.format} "
            "with scales in 16 bits; keep this module"
        )
    return report._replace(
        relative_error=relative_error(weight, restored),
        output_error=None if hessian is None else _output_error(weight, restored, hessian),
        zeros=float((restored == 0).float().mean()) if report.method in pruners() else 0.0,
    )


def summarise(reports: Mapping[str, ModuleReport]) -> dict[str, Any] | None:
    """A few numbers of many modules: medians, the worst, and how often something went wrong; None if none changed.

    ``reports``: label -> report.
    """
    changed = {label: report for label, report in reports.items() if report.method}
    if not changed:
        return None
    weight = {label: report.relative_error for label, report in changed.items()}
    output = {label: report.output_error for label, report in changed.items() if report.output_error is not None}
    tuned = [report.tuned for report in changed.values() if report.tuned is not None]
    return {
        "weight_error": median(weight.values()),
        "worst_weight": _worst(weight),
        "output_error": median(output.values()) if output else None,
        "worst_output": _worst(output),
        "zeros": fmean(report.zeros for report in changed.values()),
        "retries": sum(report.retries > 0 for report in changed.values()),
        "fallbacks": sum(bool(report.fallback) for report in changed.values()),
        "tuned": median(tuned) if tuned else None,
        "untuned": sum(ratio == 1 for ratio in tuned),
    }


def _worst(errors: Mapping[str, float]) -> dict[str, Any] | None:
    label = max(errors, key=lambda label: errors[label], default=None)
    return None if label is None else {"label": label, "error": errors[label]}


def _output_error(weight: Tensor, restored: Tensor, hessian: Tensor) -> float:
    # All outputs would cost as much as a solve; this many say the same to a few percent.
    every = max(1, len(weight) // _OUTPUTS)
    return relative_output_error(weight[::every][:_OUTPUTS], restored[::every][:_OUTPUTS], hessian)


def relative_error(weight: Tensor, restored: Tensor) -> float:
    """‖W − Ŵ‖ / ‖W‖, both of one shape; sums in float32 or wider. 0 where both are all zeros."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    norm = float(torch.linalg.vector_norm(wide))
    error = float(torch.linalg.vector_norm(wide - restored))
    return error / norm if norm else error
