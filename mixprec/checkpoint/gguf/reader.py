"""What is in GGUF files, whoever wrote them: types of tensors by transformers' names, from headers alone.

For what is compared or shown; models are loaded by transformers (mixprec/models/) and by llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mixprec.core.errors import UserError
from mixprec.models.gguf import mixtures, parts
from mixprec.models.gguf.complete import MODEL_TYPES, described
from mixprec.models.gguf.held import pieces
from mixprec.models.gguf.latent import whole_name
from mixprec.models.gguf.names import gguf_names


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: ``kind`` its type in lower case (``q4_k``, ``f16``), ``shape`` as transformers has it, ``bytes``."""

    kind: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def bits(self) -> float:
        """Bits per weight, scales included."""
        return self.bytes * 8 / max(1, math.prod(self.shape))


class GgufFile:
    """An open file. ``tensors``: transformers' name (``model.layers.0.mlp.up_proj.weight``) -> what it is, in order.

    ``raw``: the same names -> where they are. ``shapes``: layers and heads by the keys of a configuration, of mixtures
    of experts a whole one.
    """

    def __init__(self, path: Path, reader: Any) -> None:
        self.path = path
        self.reader = reader
        self.architecture = str(self._field("general.architecture"))
        if self.architecture not in MODEL_TYPES:
            raise UserError(
                f"{path}: architecture {self.architecture!r} is not read; read are {', '.join(MODEL_TYPES)}"
            )
        self.shapes: Any = self._shapes()
        names = gguf_names(self.shapes)
        known = set(names.values())
        self.raw = pieces(path, (each for each in reader.tensors if whole_name(each.name) in known), names)
        self.tensors: Mapping[str, GgufTensor] = {
            name: GgufTensor(piece.kind, piece.shape, piece.bytes) for name, piece in self.raw.items()
        }

    def _shapes(self) -> Any:
        if mixtures.is_mixture(self.reader):
            from mixprec.models.discover.building import as_config  # brings torch and transformers

            return as_config(described(self.path, self.reader), str(self.path))
        return SimpleNamespace(
            model_type=MODEL_TYPES[self.architecture],
            num_hidden_layers=self._number("block_count"),
            num_attention_heads=self._number("attention.head_count"),
            num_key_value_heads=self._number("attention.head_count_kv"),
        )

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return int(self.shapes.num_hidden_layers)

    def _field(self, key: str) -> Any:
        field = self.reader.get_field(key)
        if field is None:
            raise UserError(f"{self.path}: {key} is missing; it is no model, or its writer was stopped")
        return field.contents()

    def _number(self, key: str) -> int:
        value = self._field(f"{self.architecture}.{key}")
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{self.path}: {self.architecture}.{key}: {value!r} is no positive number")
        return value


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF model by its file, or any of its parts; weights are read when they are asked for.

    Raises UserError where a file is missing, truncated, no GGUF file, or of an architecture that is not read.
    """
    return GgufFile(path, parts.read(path))
