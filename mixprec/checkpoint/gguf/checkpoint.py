"""GGUF files among the checkpoints whose weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.gguf import values
from mixprec.checkpoint.gguf.stored import StoredGguf
from mixprec.checkpoint.quantization import CONFIG
from mixprec.checkpoint.reader import Checkpoint
from mixprec.core.errors import UserError, reason
from mixprec.models.config import check_builds, load_config
from mixprec.models.decoder import Linear
from mixprec.models.gguf import parts
from mixprec.models.gguf.config import check_rope, config_in
from mixprec.models.maps import decoder_of
from mixprec.numerics.groupwise import Quantized


class GgufCheckpoint(StoredGguf, Checkpoint):
    """What is stored in a GGUF file, and its weights, which are read one module at a time.

    Raises UserError, here and below, for configurations that transformers refuses.
    """

    def __init__(self, path: Path, file: Path) -> None:
        super().__init__(path, file)
        self.shapes = load_config(str(path)) if (path / CONFIG).is_file() else _config(file, self.file.reader)
        self.inventory = decoder_of(self.shapes)
        check_builds(self.shapes)

    def weight(self, module: Linear, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in) that a module stands for, rounded once to ``dtype``."""
        return self.tensor(module.weight_name).to(dtype)

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors by transformers' names, in ``dtype``.

        Raises UserError where the file asks for a rotary embedding that the configuration has not.
        """
        check_rope(self.file.path, self.file.reader, self.shapes)
        return {name: self.tensor(name).to(dtype) for name in self.file.tensors}

    def tensor(self, name: str) -> Tensor:
        """One tensor by its full name in transformers, float32."""
        return values.weight(self.file, name)

    def quantized(self, module: Linear) -> Quantized:
        """Raises UserError: blocks of llama.cpp are no integer grids."""
        raise UserError(f"{self.path}: {module.address}: types of llama.cpp have no codes and grids of other formats")

    def order(self, module: Linear) -> None:
        """Columns lie where they are."""


def _config(file: Path, reader: Any) -> PretrainedConfig:
    """The configuration that a file's metadata amount to."""
    try:
        with parts.one_reader():
            return config_in(file, reader)
    except UserError:
        raise
    except Exception as problem:  # transformers raises many kinds
        raise UserError(f"{file}: transformers can't read its metadata ({reason(problem)})") from None
