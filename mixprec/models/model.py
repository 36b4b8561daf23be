"""The one value that stands for a model: where it comes from, what it is made of, and how it is opened."""

from __future__ import annotations

import copy
import gc
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mixprec.core import seals
from mixprec.core.arguments import typed
from mixprec.core.errors import UserError, said_of
from mixprec.core.progress import console
from mixprec.models import locate, modelfiles
from mixprec.models.decoder import Decoder
from mixprec.models.maps import decoder_of
from mixprec.models.shapes import shape_of
from mixprec.models.sizes import context_of

# What needs torch or transformers is imported when it is asked for: many stages want a model's address alone.
if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from mixprec.checkpoint.reader import Checkpoint
    from mixprec.models.encoding import Encoder
    from mixprec.models.load import LoadedModel
    from mixprec.models.source import Source
    from mixprec.walk.blocks import Blocks, Outside

#: transformers changes torch for all threads while it builds a model: two at once leave parameters without weights.
_LOADING: Final = threading.RLock()


class Model:
    """A model by its ``id``: bundled name, hub id, folder or GGUF file; computed with in ``dtype`` on ``device``.

    Nothing is read before it is asked for; what was read is kept. ``revision``: branch, tag or commit of a hub id;
    the commit is looked up once. Attributes and methods raise UserError where the model, or what is asked of it,
    can't be had, and where its files changed since they were first looked at.
    """

    @typed()
    def __init__(
        self, id: str | Path, *, revision: str | None = None, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.id, self.revision, self.dtype, self.device = str(id), revision, dtype, device
        self._loaded: LoadedModel | None = None
        self._told = False
        self._seen: dict[str, seals.State] = {}

    def __repr__(self) -> str:
        given = {"revision": self.revision, "dtype": self.dtype, "device": self.device}
        said = "".join(f", {key}={value!r}" for key, value in given.items() if value is not None)
        return f"Model({self.id!r}{said})"

    def __getstate__(self) -> dict[str, Any]:
        # Copies and files hold what is known of the model, not its weights.
        return {**vars(self), "_loaded": None}

    def computed(self, *, dtype: str | None = None, device: str | None = None) -> Model:
        """The same model computed in another type, or elsewhere; itself where that is how it is computed."""
        dtype, device = dtype or self.dtype, device or self.device
        if (dtype, device) == (self.dtype, self.device):
            return self
        other = copy.copy(self)  # with all that is known of the files already
        other.dtype, other.device = dtype, device
        return other

    @property
    def on_one_device(self) -> Model:
        """The model for what can't be spread over several devices: of ``auto`` the first GPU, or the CPU."""
        from mixprec.core import devices

        return self.computed(device=devices.one_device(self.device))

    @cached_property
    def commit(self) -> str | None:
        """The commit of the hub's repository; None for what lies on this machine."""
        return locate.commit(self.id, self.revision)

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What provenance says of where it comes from: id, revision and, of a model on the hub, its commit."""
        found = {} if self.commit is None else {"commit": self.commit}
        return {"model": self.id, "revision": self.revision} | found

    @property
    def identity(self) -> str:
        """What fingerprints know it by: sha256 over its files, or hub id@commit."""
        if self.commit is not None:
            return f"{self.id}@{self.commit}"
        self.check_unchanged()
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return modelfiles.identity(self.folder)

    @cached_property
    def folder(self) -> Path:
        """The folder with its checkpoint; a hub id is downloaded, a GGUF file converted, where that wasn't done yet."""
        found = locate.fetch(self.id, self.commit)
        self._seen = self._seen or modelfiles.states(found)
        return found

    def _look(self) -> None:
        """Note a folder's files before the first of them is read, so that all that is read belongs together."""
        if not self._seen and Path(self.id).is_dir():
            self._seen = modelfiles.states(Path(self.id))

    def check_unchanged(self) -> None:
        """Its files are those that were there when they were first looked at: all that is read belongs together.

        Raises UserError naming the first that isn't.
        """
        now = modelfiles.states(self.folder)
        # What else comes into the hub's cache is of the same commit.
        names = self._seen.keys() | (now.keys() if self.commit is None else set())
        for name in sorted(names):
            if self._seen.get(name) != now.get(name):
                raise UserError(
                    f"{self.folder / name}: changed while the model was in use, and what was made of it so far belongs "
                    "to other files; leave the model's folder alone and start again"
                )

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its configuration; reads no weights and downloads none."""
        from mixprec.models.config import load_config

        self._look()
        return load_config(self.id, self._at)

    @property
    def _at(self) -> str | None:
        """The commit where it was looked up already, so that all is read of one; models may be known without any."""
        return vars(self).get("commit") or self.revision

    @cached_property
    def decoder(self) -> Decoder:
        """What it is made of: its blocks, linear modules and all parameters, by arithmetic on the configuration.

        Of well-known models and the bundled one it needs neither transformers nor torch.
        """
        return decoder_of(self.config if self._shape is None else self._shape)

    @cached_property
    def context(self) -> int:
        """Tokens that it was trained to see at once, by the configuration."""
        return context_of(self.config if self._shape is None else self._shape)

    @cached_property
    def _shape(self) -> Mapping[str, Any] | None:
        # What lies on this machine has no revisions: load_config says so.
        return None if self.id == locate.BUNDLED and self.revision is not None else shape_of(self.id)

    @property
    def here(self) -> Path | None:
        """The folder with its checkpoint where that is on this machine; downloads and converts nothing."""
        read = vars(self).get("config")  # knows the commit that was looked up
        return locate.here(self.id, self._at) if read is None else locate.at_hand(read)

    @cached_property
    def encoder(self) -> Encoder:
        """What makes its tokens of text."""
        from mixprec.models.tokenizer import load_encoder

        self._look()
        return load_encoder(self.id, self._at, self.decoder.sizes.vocabulary)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer alone, for templates and counts: the configuration isn't read."""
        from mixprec.models.tokenizer import load_encoder

        self._look()
        return load_encoder(self.id, self._at, sys.maxsize).tokenizer

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its files, whole: headers are read and compared with the configuration, weights are not read yet."""
        from mixprec.checkpoint.opening import open_checkpoint

        return open_checkpoint(self.folder)

    @property
    def original(self) -> Checkpoint:
        """Its files as those of a model that is to be compressed: not quantized already."""
        from mixprec.checkpoint.opening import original

        self.check_unchanged()
        return original(self.checkpoint)

    @property
    def source(self) -> Source:
        """Its tensors on disk."""
        return self.checkpoint.source

    def check(self) -> None:
        """What ``load`` refuses by files' names and headers, and for its tokenizer, without reading weights."""
        self._computable()
        self.encoder  # noqa: B018 (raises where it doesn't fit)

    def _computable(self) -> Checkpoint:
        from mixprec.checkpoint import integrity
        from mixprec.models.load import check_computable

        integrity.verify(self.folder)
        self.check_unchanged()
        with said_of("model.id"):
            check_computable(self.checkpoint)
        return self.checkpoint

    def load(self) -> LoadedModel:
        """The whole model in memory, for inference; held, so that all get the same one, until ``release``.

        Raises UserError for an unknown ``dtype`` or ``device``, broken or missing files, weights that are missing, of
        another shape, NaN or infinite, and for tokenizers of another model or without character offsets.
        """
        from mixprec.core import devices
        from mixprec.models.load import load_whole

        with _LOADING:
            if self._loaded is None:
                chosen = devices.dtype_of(self.dtype)
                devices.check_device(self.device)
                opened = self._computable()
                console.print(f"loading {self.id}", soft_wrap=True)
                self._tell(opened)
                self._loaded = load_whole(self.id, opened, self.encoder, chosen, self.device)
            self.check_unchanged()
            return self._loaded

    def _tell(self, opened: Checkpoint) -> None:
        """Say once how its weights are read that aren't as they are stored, and what of its files is not read."""
        if not self._told:
            for note in opened.notes:
                console.print(f"{self.folder}: {note}", soft_wrap=True)
        self._told = True

    def release(self) -> None:
        """Let the whole model go; ``load`` reads it again."""
        self._loaded = None
        gc.collect()

    def open_blocks(self, outside: Sequence[Outside] = ("embedding", "norm", "head")) -> Blocks:
        """The model with its blocks on disk; of what lies ``outside`` of them, what is named is in memory.

        Raises UserError as ``load``, for a model that is quantized already, and for ``device`` auto.
        """
        from mixprec.core import devices
        from mixprec.walk.blocks import open_blocks

        if self.device == "auto":
            raise UserError(
                "device: auto spreads weights over several GPUs; streamed ones need one device, such as cuda"
            )
        devices.check_device(self.device)
        chosen = devices.dtype_of(self.dtype)
        original = self.original
        self._tell(original)
        return open_blocks(original, chosen, self.device, outside)
