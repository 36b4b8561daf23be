from __future__ import annotations

import pytest
from transformers import LlamaConfig

from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of


@pytest.fixture(scope="session")
def tiny() -> Decoder:
    """Two blocks; within a block q and o, k and v, gate and up have one shape each."""
    return decoder_of(
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
def llama_8b() -> Decoder:
    """R1-Distill-Llama-8B, from its configuration."""
    return decoder_of(load_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))
