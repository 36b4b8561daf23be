"""95% intervals of figures of mean KLs, over passages and draws, and the ratios that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def interval(
    plans: Sequence[Sequence[Any]], of: Any, resamples: int = 2000, part: str = "kl_by_passage"
) -> list[float]:
    """95% interval of a figure of some plans' mean KLs: passages, the same for all, and each plan's draws resampled."""
    random = np.random.default_rng(0)
    tokens = np.array([passage["tokens"] for passage in plans[0][0][part]])
    passages = random.integers(len(tokens), size=(resamples, len(tokens)))
    values = []
    for rows in plans:
        sums = np.array([[passage["kl_sum"] for passage in row[part]] for row in rows])
        drawn = random.integers(len(rows), size=(resamples, max(1, len(rows) - 1)))
        values.append(sums[drawn[:, :, None], passages[:, None]].mean(1).sum(1) / tokens[passages].sum(1))
    return [float(bound) for bound in np.quantile(of(*values), [0.025, 0.975])]


def divided(one: Any, other: Any) -> Any:
    return one / other


def ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other
