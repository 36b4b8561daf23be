"""The families of decoders as tables: a new architecture is a row here, and a table where it is made in another way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mixprec.models.arch import gemma, llama
from mixprec.models.arch.family import Family

#: ``config.model_type`` -> what its decoders are made of.
FAMILIES: Final[Mapping[str, Family]] = {
    "llama": llama.LLAMA,
    "qwen2": llama.QWEN2,
    "qwen3": llama.QWEN3,
    "mistral": llama.MISTRAL,
    "gemma": gemma.GEMMA,
    "gemma2": gemma.GEMMA2,
    "gemma3_text": gemma.GEMMA3,
}
