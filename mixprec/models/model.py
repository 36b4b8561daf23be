"""The one value that stands for a model: where it comes from, what it is made of, and how it is opened."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from mixprec.models import locate
from mixprec.models.config import load_config
from mixprec.models.decoder import Decoder, decoder_of
from mixprec.models.encoding import Encoder
from mixprec.models.load import LoadedModel, load_model
from mixprec.models.source import Source, open_source
from mixprec.models.tokenizer import load_encoder
from mixprec.walk import blocks


class Model:
    """A model by its ``id``: bundled name, hub id, folder or GGUF file; computed with in ``dtype`` on ``device``.

    Nothing is read before it is asked for; what was read is kept. ``revision``: of a hub id, a branch, tag or commit.
    Each attribute and method raises UserError where the model, or what is asked of it, can't be had.
    """

    def __init__(self, id: str, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu") -> None:
        self.id, self.revision, self.dtype, self.device = id, revision, dtype, device
        self._loaded: LoadedModel | None = None

    def __repr__(self) -> str:
        given = {"revision": self.revision, "dtype": self.dtype, "device": self.device}
        said = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
        return f"Model({self.id!r}{said})"

    @cached_property
    def commit(self) -> str | None:
        """The commit of the hub's repository; None for what lies on this machine."""
        return locate.commit(self.id, self.revision)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What provenance says of where it comes from: id, revision and, of a model on the hub, its commit."""
        return locate.origin(self.id, self.commit or self.revision) | {"revision": self.revision}

    @cached_property
    def identity(self) -> str:
        """What fingerprints know it by: sha256 over its files, or hub id@commit."""
        return locate.identity(self.id, self.commit or self.revision)

    @cached_property
    def folder(self) -> Path:
        """The folder with its checkpoint; a hub id is downloaded, a GGUF file converted, where that wasn't done yet."""
        return locate.fetch(self.id, self.commit or self.revision)

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its configuration; reads no weights and downloads none."""
        return load_config(self.id, self.commit or self.revision)

    @cached_property
    def inventory(self) -> Decoder:
        """Its modules, from the configuration."""
        return decoder_of(self.config)

    @cached_property
    def encoder(self) -> Encoder:
        """What makes its tokens of text."""
        return load_encoder(self.id, self.commit or self.revision, self.config.vocab_size)

    @cached_property
    def source(self) -> Source:
        """Its tensors on disk."""
        return open_source(self.folder)

    def load(self) -> LoadedModel:
        """The whole model in memory; held, so that all get the same one, until ``release``."""
        if self._loaded is None:
            self._loaded = load_model(self.id, dtype=self.dtype, device=self.device, revision=self.revision)
        return self._loaded

    def release(self) -> None:
        """Let the whole model go; ``load`` reads it again."""
        self._loaded = None

    def open_blocks(self, *outside: blocks.Outside) -> blocks.Blocks:
        """The model with its blocks on disk; of what lies outside of them all, or what is named, is in memory."""
        return blocks.open_blocks(
            self.id,
            dtype=self.dtype,
            device=self.device,
            revision=self.revision,
            outside=outside or blocks.OUTSIDE,
        )
