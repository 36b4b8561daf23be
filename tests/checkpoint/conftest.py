from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from plan_made import WIDE, plan_for
from tiny import build

from mixprec.plan.schema import Plan

MakeSource = Callable[..., Path]


@pytest.fixture
def source(tmp_path: Path) -> MakeSource:
    """Write a tiny checkpoint with its tokenizer; ``shard`` is the size of its files."""

    def make(
        architecture: str = "llama",
        dtype: torch.dtype = torch.bfloat16,
        shard: str = "1GB",
        name: str = "source",
        **options: object,
    ) -> Path:
        loaded = build(architecture, **WIDE | options)
        loaded.model.to(dtype).save_pretrained(tmp_path / name, max_shard_size=shard)
        loaded.tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def planner() -> Callable[..., Plan]:
    return plan_for
