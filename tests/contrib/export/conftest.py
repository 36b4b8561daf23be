from __future__ import annotations

import pytest
from transformers import LlamaConfig

from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of


def _llama(hidden: int, intermediate: int) -> Decoder:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    shape = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": 12, "vocab_size": 50}
    return decoder_of(LlamaConfig(**heads, **shape))


@pytest.fixture(scope="session")
def small() -> Decoder:
    """Twelve blocks, so that numbers have one digit and two; 128 and 192 columns."""
    return _llama(128, 192)


@pytest.fixture(scope="session")
def wide() -> Decoder:
    """Twelve blocks with 256 and 512 columns."""
    return _llama(256, 512)


@pytest.fixture(scope="session")
def llama_8b() -> Decoder:
    """R1-Distill-Llama-8B, from its configuration."""
    return decoder_of(load_config("deepseek-ai/DeepSeek-R1-Distill-Llama-8B"))
