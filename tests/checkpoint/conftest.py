from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import build

from mixprec import models, modules
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Method, Plan

MakeSource = Callable[..., Path]

#: Every matrix has rows and columns in multiples of 32, as GPTQ's readers want.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


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


def plan_for(folder: Path, default: str, method: Method = "rtn", **rules: Any) -> Plan:
    """A plan for the model in ``folder``; a rule is selector=format, or selector={format, method}."""
    inventory = modules.inventory(models.load_config(str(folder)))
    said = [{"match": match, **(rule if isinstance(rule, dict) else {"format": rule})} for match, rule in rules.items()]
    return build_plan(PlanSpec.model_validate({"default": default, "rules": said}), inventory, str(folder), method)


@pytest.fixture
def planner() -> Callable[..., Plan]:
    return plan_for
