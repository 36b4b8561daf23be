from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from second_device import register, second_device

register()


@pytest.fixture(scope="module", params=["second", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """A device besides the CPU: one that only pretends, for all machines, and a GPU."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device here")
        yield "cuda"
        return
    with second_device() as name:
        yield name
