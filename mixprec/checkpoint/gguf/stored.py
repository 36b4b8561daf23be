"""What is stored in GGUF files, among the checkpoints that inspect and diff read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from mixprec.checkpoint.gguf.reader import GgufTensor, open_gguf
from mixprec.checkpoint.quantization import CONFIG
from mixprec.checkpoint.stored import Layout, Stored
from mixprec.core.errors import UserError
from mixprec.models import configfile
from mixprec.models.decoder import Linear
from mixprec.models.gguf.complete import check_tensors, described
from mixprec.models.maps import decoder_of
from mixprec.numerics.formats import GGML, KEEP, GgmlFormat

_FLOATS: Final = ("f16", "bf16", "f32")


class StoredGguf(Stored):
    """A GGUF file, alone or in a folder with its configuration, by its headers.

    Raises UserError, here and below, for broken files, other architectures and types that are not read.
    """

    def __init__(self, path: Path, file: Path) -> None:
        self.path = path
        self.file = open_gguf(file)
        self.config: dict[str, Any] = {}
        self.packing = None
        has_config = (path / CONFIG).is_file()
        self.inventory = decoder_of(configfile.read(path) if has_config else described(file, self.file.reader))
        check_tensors(file, self.file.reader, self.inventory)

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Address -> layout, in the model's order."""
        return {module.address: self._layout(module) for module in self.inventory.matrices}

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing in the file goes unread."""
        return ()

    @property
    def container(self) -> str:
        """The checkpoint's format."""
        return "gguf"

    def names(self, module: Linear) -> list[str]:
        """The name of a module's weight."""
        return [module.weight_name]

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
