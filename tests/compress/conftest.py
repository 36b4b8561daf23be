from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mixprec.models.config import load_config
from mixprec.models.maps import decoder_of
from mixprec.plan.methods import Method
from mixprec.plan.rules import PlanSpec, build_plan
from mixprec.plan.schema import Plan

_SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}

MakeCheckpoint = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Write a tiny random checkpoint of an architecture; ``shard`` is the size of its files."""

    def make(
        architecture: str = "llama", dtype: torch.dtype = torch.bfloat16, shard: str = "1GB", **options: Any
    ) -> Path:
        folder = tmp_path / "source"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **_SHAPE | options), dtype=dtype)
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "tokenizer.json").write_text(json.dumps({"model": "made up"}))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        (folder / "LICENSE").write_text("free")
        (folder / "training_args.bin").write_bytes(b"not wanted")
        return folder

    return make


def plan_for(folder: Path, default: str, method: Method = "rtn", sparsity: str | None = None, **rules: Any) -> Plan:
    """A plan for the model in ``folder``; a rule is selector=format, or selector={format, sparsity, method}."""
    inventory = decoder_of(load_config(str(folder)))
    said = [{"match": match, **(rule if isinstance(rule, dict) else {"format": rule})} for match, rule in rules.items()]
    spec = PlanSpec.model_validate({"default": default, "sparsity": sparsity, "rules": said})
    return build_plan(spec, inventory, str(folder), method)


@pytest.fixture
def planner() -> Callable[..., Plan]:
    return plan_for
