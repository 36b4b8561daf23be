"""The algorithm that the paper's authors released, span by span, and its time extrapolated from a sample.

Per span: one forward and backward pass over everything up to its end, every parameter requiring a gradient, every
linear module's output and its gradient kept (GitHub psunlpgroup/Compression-Effects, compute_attpatching.py). Per
trace: one forward pass for the activation means.
"""

from __future__ import annotations

from typing import Any

import machine

#: Spans that end later are extrapolated: their backward pass takes more memory than a desktop has.
LONGEST = 4_096


def span(loaded: Any, ids: Any, window: Any) -> None:
    """One span's gradients."""
    outputs = {}

    def keep(name: str, output: Any) -> None:
        output.retain_grad()
        outputs[name] = output

    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name, module in loaded.linears.items()
    ]
    try:
        labels = ids.clone()
        labels[: window.start] = -100
        loaded.model(ids[None, : window.end], labels=labels[None, : window.end], use_cache=False).loss.backward()
        for output in outputs.values():
            output.grad[0, window.start : window.end].mean(0)
    finally:
        for handle in handles:
            handle.remove()
        loaded.model.zero_grad(set_to_none=True)


def with_gradients(loaded: Any, wanted: bool = True) -> Any:
    """The model, its parameters requiring gradients or not."""
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(wanted)
    return loaded


def seconds(loaded: Any, spans: list[tuple[Any, Any]], forward: float, samples: int) -> dict[str, Any]:
    """CPU seconds for all ``spans`` (token ids and window), and ``forward`` for the means.

    Measured are samples at equal distances in the order of their prefixes' lengths, among those up to LONGEST tokens;
    all others come from a straight line in the prefix's tokens and their square.
    """
    import numpy as np
    from scipy.optimize import nnls

    spans = sorted((each for each in spans if each[1].end - each[1].start > 1), key=lambda each: each[1].end)
    short = [each for each in spans if each[1].end <= LONGEST]
    chosen = [short[(2 * i + 1) * len(short) // (2 * samples)] for i in range(samples)]
    with_gradients(loaded)
    span(loaded, *chosen[0])  # warm up
    measured = np.array([machine.timed(lambda each=each: span(loaded, *each)) for each in chosen])
    with_gradients(loaded, False)

    def features(lengths: Any) -> Any:
        scaled = np.asarray(lengths, dtype=float) / 1000
        return np.stack([np.ones_like(scaled), scaled, scaled**2], axis=1)

    points = features([window.end for _, window in chosen])
    # Relative residuals, so that short prefixes count as well; costs can't be negative.
    coefficients, _ = nnls(points / measured[:, None], np.ones(samples))
    predicted = features([window.end for _, window in spans]) @ coefficients
    return {
        "seconds_released_extrapolated": float(predicted.sum()) + forward,
        "released_spans_measured": samples,
        "released_spans": len(spans),
        "released_spans_beyond_sample": len(spans) - len(short),
        "released_fit_error": float(np.abs(points @ coefficients / measured - 1).max()),
    }
