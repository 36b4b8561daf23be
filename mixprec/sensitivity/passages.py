"""What damage is predicted on: passages of tokens, and how much each predicted token counts for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixprec.calibration.data import Calibration
from mixprec.core.errors import UserError
from mixprec.evaluate.passages import Passage, from_traces
from mixprec.models.encoding import Encoder
from mixprec.plan.sensitivity import ALL
from mixprec.traces.spans import AnnotatedTrace


@dataclass(frozen=True)
class Scored:
    """tokens (T,). weights: target -> (T − 1,) what the prediction of tokens 1 … T−1 counts. seed: of its gradients."""

    tokens: Tensor
    weights: Mapping[str, Tensor]
    seed: int = 0


def from_calibration(calibration: Calibration, samples: int, seed: int) -> list[Scored]:
    """The first ``samples`` of a calibration set, weighted as there; the only target is all tokens."""
    weights = torch.ones(calibration.tokens.shape) if calibration.weights is None else calibration.weights
    return [
        Scored(tokens, {ALL: counts[1:]}, seed + number)
        for number, (tokens, counts) in enumerate(zip(calibration.tokens[:samples], weights, strict=False))
    ]


def from_behaviours(
    traces: Sequence[AnnotatedTrace],
    encoder: Encoder,
    behaviours: Sequence[str],
    samples: int,
    max_tokens: int,
    seed: int,
) -> list[Scored]:
    """The first ``samples`` traces, cut; targets are all tokens and each behaviour's spans.

    Raises UserError for a behaviour without a token there.
    """
    found, _ = from_traces(traces[:samples], encoder, max_tokens)
    scored = []
    for number, passage in enumerate(found):
        weights = {ALL: torch.ones(len(passage.tokens) - 1)}
        weights |= {behaviour: inside(passage, behaviour).float() for behaviour in behaviours}
        scored.append(Scored(passage.tokens, weights, seed + number))
    for behaviour in behaviours:
        if not any(bool(each.weights[behaviour].any()) for each in scored):
            raise UserError(
                f"sensitivity.behaviours: {behaviour}: no span in the first {max_tokens} tokens of "
                f"{len(scored)} traces; raise sensitivity.samples or max_tokens, or leave it out"
            )
    return scored


def inside(passage: Passage, behaviour: str) -> Tensor:
    """(T − 1,) bool: which predicted tokens lie in spans of a behaviour."""
    found = torch.zeros(len(passage.tokens), dtype=torch.bool)
    for span in passage.spans:
        if span.behaviour == behaviour:
            found[span.start : span.end] = True
    return found[1:]


def counted(scored: Sequence[Scored], target: str) -> float:
    """What the predicted tokens count together: what sums are divided by to be per token."""
    return float(sum(each.weights[target].sum(dtype=torch.float64) for each in scored))
