from __future__ import annotations

from pathlib import Path

import pytest
from scoring import OPTIONS, TREATMENTS, Tiny, calibrating

from mixprec.compress import candidates as solving
from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.decoder import decoder_of
from mixprec.walk import blocks


@pytest.fixture(scope="session")
def tiny(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A trained tiny Llama with candidates of all its modules."""
    inventory = decoder_of(load_config(str(tiny_checkpoint)))
    made = solving.make(
        blocks.open_blocks(str(tiny_checkpoint), outside=("embedding", "norm")),
        locate.identity(str(tiny_checkpoint)),
        inventory,
        TREATMENTS,
        calibrating(),
        OPTIONS,
        tmp_path_factory.mktemp("candidates"),
    )
    return Tiny(tiny_checkpoint, inventory, made)
