"""Memory that runs out is known by what is said of it, and a limit is kept."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from mixprec.core.memory import OverLimit, limited, ran_out


def test_what_torch_and_numpy_say_is_known() -> None:
    for ask in (lambda: torch.empty(10**15, dtype=torch.uint8), lambda: np.empty(10**15, dtype=np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        told = ran_out(caught.value)
        assert told is not None and told.startswith("out of memory (") and "more were asked for" in told
    cuda = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")
    assert ran_out(cuda) == "out of memory (2.00 GiB more were asked for)"
    assert ran_out(MemoryError()) == "out of memory"
    assert ran_out(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert ran_out(ValueError("out of memory")) is None


def test_a_limit_is_kept() -> None:
    kept = []
    with pytest.raises(OverLimit, match=r"more than the 0\.001 GB of --max-memory"), limited(1_000_000):
        for _ in range(1000):
            time.sleep(0.01)
            kept.append(0)
    assert len(kept) < 1000
    with limited(10**15), limited(None):
        time.sleep(0.12)
