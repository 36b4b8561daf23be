from __future__ import annotations

from pathlib import Path

import pytest
from scoring import OPTIONS, TREATMENTS, Tiny, calibrating

from mixprec.compress import candidates as solving
from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.models.model import Model


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A trained tiny Llama with candidates of all its modules."""
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    made = solving.make(
        Model(tiny_checkpoint).open_blocks(("embedding", "norm")),
        Model(tiny_checkpoint).identity,
        inventory,
        TREATMENTS,
        calibrating(),
        OPTIONS,
        tmp_path_factory.mktemp("candidates"),
    )
    return Tiny(tiny_checkpoint, inventory, made)
