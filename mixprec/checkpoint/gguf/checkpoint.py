"""GGUF files among the checkpoints that inspect and diff read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.gguf.reader import GgufTensor, open_gguf
from mixprec.checkpoint.quantization import CONFIG
from mixprec.checkpoint.reader import Checkpoint
from mixprec.checkpoint.stored import Layout
from mixprec.core.errors import UserError, reason
from mixprec.models.config import load_config
from mixprec.models.decoder import Linear, decoder_of
from mixprec.models.gguf import parts
from mixprec.models.gguf.complete import check_rope, check_tensors, config_in
from mixprec.numerics.formats import GGML, KEEP, GgmlFormat
from mixprec.numerics.groupwise import Quantized

_FLOATS: Final = ("f16", "bf16", "f32")


class GgufCheckpoint(Checkpoint):
    """A GGUF file, alone or in a folder with its configuration; weights are read one module at a time.

    Raises UserError, here and below, for broken files, other architectures and types that are not read.
    """

    def __init__(self, path: Path, file: Path) -> None:
        self.path = path
        self.file = open_gguf(file)
        self.config: dict[str, Any] = {}
        self.packing = None
        described = (path / CONFIG).is_file()
        self.shapes = load_config(str(path)) if described else _config(file, self.file.reader)
        self.inventory = decoder_of(self.shapes)
        check_tensors(file, self.file.reader, self.shapes)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Address -> layout, in the model's order."""
        return {module.address: self._layout(module) for module in self.inventory.linears}

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing in the file goes unread."""
        return ()

    @property
    def container(self) -> str:
        """The checkpoint's format."""
        return "gguf"

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
        return self.file.weight(name)

    def names(self, module: Linear) -> list[str]:
        """The name of a module's weight."""
        return [module.weight_name]

    def quantized(self, module: Linear) -> Quantized:
        """Raises UserError: blocks of llama.cpp are no integer grids."""
        raise UserError(f"{self.path}: {module.address}: types of llama.cpp have no codes and grids of other formats")

    def order(self, module: Linear) -> None:
        """Columns lie where they are."""

    def _layout(self, module: Linear) -> Layout:
        known: Mapping[str, GgufTensor] = self.file.tensors
        found = known.get(module.weight_name)
        shape = (module.out_features, module.in_features)
        if found is None or found.shape != shape:
            has = "missing" if found is None else f"of the shape {found.shape}"
            raise UserError(f"{self.file.path}: {module.weight_name} is {has}, the configuration asks for {shape}")
        if found.kind in _FLOATS:
            return Layout("gguf", KEEP, found.bytes, found.kind)
        if found.kind not in GGML:
            read = ", ".join([*_FLOATS, *GGML])
            raise UserError(f"{self.file.path}: {module.weight_name}: type {found.kind} is not read; read are {read}")
        return Layout("gguf", GgmlFormat(found.kind), found.bytes)


def _config(file: Path, reader: Any) -> PretrainedConfig:
    """The configuration that a file's metadata amount to."""
    try:
        with parts.one_reader():
            return config_in(file, reader)
    except UserError:
        raise
    except Exception as problem:  # transformers raises many kinds
        raise UserError(f"{file}: transformers can't read its metadata ({reason(problem)})") from None
