from __future__ import annotations

import pytest
from transformers import LlamaConfig

from mixprec.models.config import load_config
from mixprec.modules import Inventory, inventory


@pytest.fixture(scope="session")
def tiny() -> Inventory:
    """Two blocks; within a block q and o, k and v, gate and up have one shape each."""
    return inventory(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=50,
        )
    )


@pytest.fixture(scope="session")
def llama_8b() -> Inventory:
    """R1-Distill-Llama-8B, from its configuration."""
    return inventory(load_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))
