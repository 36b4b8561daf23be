"""Checkpoints read back, whoever wrote them: each linear module's weight, without any runtime.

Dense, compressed-tensors (pack-quantized, dense or padded words), GPTQ (both layouts, reordered columns too) and AWQ
(version gemm), each by its own CheckpointFormat; files of llama.cpp by checkpoint/gguf/checkpoint.py.
Used by diff and convert, and to evaluate packed checkpoints.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig

from mixprec.checkpoint.base import Held
from mixprec.checkpoint.packings import PACKINGS
from mixprec.checkpoint.safetensors import IN_SAFETENSORS
from mixprec.checkpoint.stored import Stored
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.models.config import check_builds, load_config
from mixprec.models.decoder import Linear
from mixprec.models.tensors import take
from mixprec.numerics import storage
from mixprec.numerics.groupwise import Quantized


class Checkpoint(Stored):
    """What is stored in a folder, and its weights, which are read one module at a time.

    Raises UserError, here and below, for configurations that transformers refuses, and for packed weights that don't
    unpack.
    """

    def __init__(self, path: Path) -> None:
        self.shapes: PretrainedConfig = load_config(str(path))
        super().__init__(path)
        check_builds(self.shapes)

    def weight(self, module: Linear, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in) that a module stands for, rounded once to ``dtype``."""
        held, order = self.held(module), self.order(module)
        if order is None:
            return storage.dequantize(*held, dtype)
        assert isinstance(held.quantized, Quantized)
        # Columns sorted by group are what dequantize knows; afterwards they go back to their places.
        quantized = held.quantized._replace(codes=held.quantized.codes[:, order])
        sorted_ = storage.dequantize(quantized, held.format, dtype)
        return torch.empty_like(sorted_).index_copy_(1, order, sorted_)

    def quantized(self, module: Linear) -> Quantized:
        """Codes and grid of a packed module, columns where they are."""
        quantized = self.held(module).quantized
        assert isinstance(quantized, Quantized)
        return quantized

    def held(self, module: Linear) -> Held:
        """What a module's tensors hold, columns where they are."""
        layout = self.layouts[module.address]
        tensors = {name: self.tensor(name) for name in self.names(module)}
        try:
            return IN_SAFETENSORS[layout.container].read(module, tensors, layout.format, self.packing)
        except UserError as problem:
            raise UserError(f"{self.path}: {problem}") from None
        except (KeyError, RuntimeError) as problem:
            raise UserError(
                f"{self.path}: {module.address}: can't be unpacked as {layout.format} ({problem})"
            ) from None

    def order(self, module: Linear) -> Tensor | None:
        """Columns sorted by their groups, where they don't lie so already (GPTQ's act order); else None."""
        packing = PACKINGS.get(self.layouts[module.address].container)
        name = f"{module.address}.{packing.columns}" if packing and packing.columns else ""
        if name not in self.source.tensors:
            return None
        index = self.tensor(name)
        order = torch.argsort(index, stable=True)
        return None if bool((index[1:] >= index[:-1]).all()) else order

    def state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All tensors by the names and shapes of the uncompressed model, floats in ``dtype``."""
        packed = [module for module in self.inventory.matrices if self.layouts[module.address].container != "dense"]
        left_out = {name for module in packed for name in self.names(module)}
        found = {name: self.tensor(name) for name in self.source.tensors if name not in left_out}
        found = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in found.items()}
        return found | {module.weight_name: self.weight(module, dtype) for module in packed}

    def tensor(self, name: str) -> Tensor:
        """One tensor by its full name."""
        info = self.source.tensors[name]
        with artifacts.open_tensors(self.path / info.shard) as file:
            return take(file, name, info)
