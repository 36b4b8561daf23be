"""From token by token to numbers: perplexity, KL and agreement with intervals, over all tokens and per behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mixprec.core import artifacts
from mixprec.evaluate.passages import Material, Passage
from mixprec.numerics.divergence import TokenFidelity
from mixprec.traces.store import BEHAVIOURS

#: Bootstrap resamples and their seed; passages are resampled, since a passage's tokens depend on one another.
RESAMPLES = 2000
SEED = 0
LEVEL = 0.95


def summarise(results: Sequence[TokenFidelity]) -> dict[str, Any] | None:
    """Numbers over the tokens of several passages; None where there are none.

    kl_mean_ci: bootstrap interval over passages, None with one passage.
    """
    results = [result for result in results if len(result.kl)]
    if not results:
        return None
    nll, kl, agree = (torch.cat(list(column)).double() for column in zip(*results, strict=True))
    return {
        "tokens": len(kl),
        "passages": len(results),
        "perplexity": float(nll.mean().exp()),
        "kl_mean": float(kl.mean()),
        "kl_mean_ci": bootstrap_mean(
            [float(result.kl.sum()) for result in results], [len(result.kl) for result in results]
        ),
        "kl_median": float(kl.median()),
        "kl_p99": float(kl.quantile(0.99)) if len(kl) < 2**24 else float(np.quantile(kl.numpy(), 0.99)),
        "top1_agreement": float(agree.mean()),
    }


def per_behaviour(passages: Sequence[Passage], results: Sequence[TokenFidelity]) -> dict[str, dict[str, Any] | None]:
    """The same numbers over the tokens of each behaviour's spans."""
    pairs = list(zip(passages, results, strict=True))
    return {behaviour: summarise([within(*pair, behaviour) for pair in pairs]) for behaviour in BEHAVIOURS}


def within(passage: Passage, result: TokenFidelity, behaviour: str) -> TokenFidelity:
    """What ``result`` says of the tokens in the behaviour's spans of ``passage``; a token in two spans counts once."""
    inside = torch.zeros(len(passage.tokens), dtype=torch.bool)
    for span in passage.spans:
        if span.behaviour == behaviour:
            inside[span.start : span.end] = True
    # Row t - 1 holds the prediction of token t; the first token is predicted by nothing.
    return TokenFidelity(*(column[inside[1:]] for column in result))


def bootstrap_mean(sums: Sequence[float], sizes: Sequence[int]) -> list[float] | None:
    """95% percentile interval of a mean over all tokens, whole passages resampled; None for one passage.

    ``sums`` and ``sizes``: each passage's sum over its tokens, and number of tokens. Sums of differences between two
    models over the same passages give the paired interval of their difference.
    """
    if len(sums) < 2:
        return None
    draws = np.random.default_rng(SEED).integers(len(sums), size=(RESAMPLES, len(sums)))
    means = np.array(sums)[draws].sum(1) / np.array(sizes)[draws].sum(1)
    return percentiles(means)


def percentiles(values: NDArray[np.float64]) -> list[float]:
    """The bounds that hold the middle 95% of resampled values."""
    tail = (1 - LEVEL) / 2
    return [float(bound) for bound in np.quantile(values, [tail, 1 - tail])]


def kl_difference(first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Mean KL of ``first`` minus that of ``second``, both ``kl_by_passage`` over the same passages, paired interval."""
    sizes = [int(passage["tokens"]) for passage in first]
    sums = [one["kl_sum"] - other["kl_sum"] for one, other in zip(first, second, strict=True)]
    return {"kl_difference": sum(sums) / sum(sizes), "ci": bootstrap_mean(sums, sizes)}


def evaluate_all(material: Material, results: Sequence[TokenFidelity], notes: Sequence[str] = ()) -> dict[str, Any]:
    """The result of one model: over traces, over text, per behaviour; ``results`` are those of ``material.all``.

    ``notes``: what is to be said of the model, such as what runtimes compute that is not measured here.

    kl_by_passage: what paired comparisons need, of the traces, or of the text where there are none.
    """
    on_traces, on_text = results[: len(material.on_traces)], results[len(material.on_traces) :]
    return {
        "schema_version": artifacts.SCHEMA_VERSION,
        "traces": summarise(on_traces),
        "text": summarise(on_text),
        "behaviours": per_behaviour(material.on_traces, on_traces),
        "kl_by_passage": [{"tokens": len(r.kl), "kl_sum": float(r.kl.sum())} for r in on_traces or on_text],
        **({"notes": list(notes)} if notes else {}),
    }
