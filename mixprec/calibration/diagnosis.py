"""How much a calibration set says: its size, its variety, and what may go wrong with as little of either."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixprec.calibration.windows import Stream, Window, looping

#: Fewer tokens than this times a layer's inputs are too few: the second moments of n tokens of d inputs are off by
#: about sqrt(d / n) of their size, a third for ten. GPTQ's authors took 128 x 2,048 tokens, 21 to 64 times.
ENOUGH = 10
#: The ten most frequent tokens are a quarter to a third of English prose; code, lists and loops go above.
MUCH = 0.5


def diagnose(tokens: Tensor, weights: Tensor | None) -> dict[str, Any]:
    """Figures on samples (N, T) with weights (N, T), over the tokens that have a weight above 0.

    ``effective_tokens``: (Σw)² / Σw², the number of equally weighted tokens that are worth as much (Kish).
    ``top10_share``: of the ten most frequent tokens. ``looping_samples``: those that ``windows.looping`` finds.
    """
    counted = tokens.flatten() if weights is None else tokens[weights > 0]
    if weights is None:
        effective = float(len(counted))
    else:
        wide = weights.double()
        effective = float(wide.sum() ** 2 / (wide**2).sum())
    stream = Stream(tokens.flatten(), None, (0, tokens.numel()))
    rows = [Window(start, start + tokens.shape[1]) for start in range(0, tokens.numel(), tokens.shape[1])]
    counts = torch.unique(counted, return_counts=True)[1].sort(descending=True).values
    return {
        "tokens": len(counted),
        "effective_tokens": round(effective, 1),
        "distinct_tokens": len(counts),
        "type_token_ratio": round(len(counts) / len(counted), 4),
        "top10_share": round(int(counts[:10].sum()) / len(counted), 4),
        "looping_samples": sum(looping(stream, rows)),
    }


def warn(figures: dict[str, Any], widest_input: int | None, hidden: int | None = None) -> list[str]:
    """What a user should know before compressing: one sentence or two for each doubt, none for a good set.

    ``figures``: those of ``diagnose``. ``widest_input``: inputs of the widest linear module that is compressed;
    None where no method solves with their second moments.
    ``hidden``: inputs of the first block, whose variety is that of the tokens alone.
    """
    found = []
    effective, distinct = figures["effective_tokens"], figures["distinct_tokens"]
    size = f"{figures['tokens']:,} tokens"
    if effective < 0.99 * figures["tokens"]:
        size += f", by their weights worth {effective:,.0f},"
    if widest_input is not None and effective < widest_input:
        found.append(
            f"calibration: {size} for inputs of {widest_input:,}: the Hessian is singular, and damping alone decides "
            f"the rest; give {ENOUGH * widest_input:,} tokens or more (samples x tokens)"
        )
    elif widest_input is not None and effective < ENOUGH * widest_input:
        found.append(
            f"calibration: {size} for inputs of {widest_input:,}, {effective / widest_input:.1f} times as many; GPTQ "
            f"may overfit them and be worse than rtn on other text; give {ENOUGH * widest_input:,} or more"
        )
    if hidden is not None and distinct < hidden:
        found.append(
            f"calibration: only {distinct:,} different tokens for a hidden size of {hidden:,}: the first block's q, k "
            "and v see their embeddings and nothing else; mix in other text"
        )
    if figures["top10_share"] > MUCH:
        found.append(
            f"calibration: ten tokens make {figures['top10_share']:.0%} of it; the text is narrow or repeats itself; "
            "mix in other text"
        )
    if figures["looping_samples"]:
        found.append(
            f"calibration: {figures['looping_samples']} samples repeat themselves and say little that is new; leave "
            "them out with loops: skip"
        )
    return found
