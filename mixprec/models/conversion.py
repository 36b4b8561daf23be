"""GGUF models as safetensors checkpoints in the user's cache, each made once, through transformers.

Everything behind this file sees a folder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PretrainedConfig

from mixprec.core import artifacts, locks
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.core.upstream import first_line, quiet
from mixprec.models.gguf import parts
from mixprec.models.gguf import tokenizer as tokenizer_in
from mixprec.models.gguf.complete import check_rope, check_tensors, config_in

#: Part of a converted model's name; raised when GGUF files are read in another way, so that they are converted again.
_VERSION = 3
#: Checksums of a conversion's files. Its name has no ending of those that tell models apart (``modelfiles.identity``).
_CHECKSUMS = ".checksums"


def cache_folder() -> Path:
    """Where converted models lie: ``$MIXPREC_CACHE``, else ``~/.cache/mixprec``."""
    return Path(os.environ.get("MIXPREC_CACHE") or Path.home() / ".cache" / "mixprec")


class Unconverted(UserError):
    """A GGUF model that is not converted yet, inside ``without_converting``."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: is not converted yet")
        self.path = path


_converting: ContextVar[bool] = ContextVar("converting", default=True)


@contextmanager
def without_converting() -> Iterator[None]:
    """Inside, GGUF models are known by their headers alone: ``load_config`` works, ``resolve`` raises Unconverted."""
    before = _converting.set(False)
    try:
        yield
    finally:
        _converting.reset(before)


def config_of(path: Path, model_id: str) -> PretrainedConfig:
    """The configuration that the conversion of a GGUF file will have."""
    file = parts.files_of(path)[0]
    with quiet(), redirect_stderr(io.StringIO()), parts.one_reader():
        try:
            reader, config = _checked(path, file)
        except UserError:
            raise
        except Exception as problem:  # a damaged file breaks the reader in many ways
            raise UserError(f"model.id: {model_id}: no usable configuration ({first_line(problem)})") from None
    config.tie_word_embeddings = "output.weight" not in {tensor.name for tensor in reader.tensors}
    config.dtype = torch.float16
    return config


def _checked(path: Path, first: Path) -> tuple[Any, PretrainedConfig]:
    """The reader of a GGUF model, whose first part is ``first``, and its configuration, once both fit."""
    reader = gguf.GGUFReader(first)
    config = config_in(path, reader)
    check_tensors(path, reader, config)
    check_rope(path, reader, config)
    return reader, config


def converted(path: Path, name: str) -> Path:
    """Convert a GGUF model, all of its parts, to a 16-bit safetensors checkpoint in the cache, once per content."""
    files = parts.files_of(path)
    digests = [artifacts.sha256_file(file) for file in files]
    target = cache_folder() / "models" / f"{name}-{artifacts.fingerprint(_VERSION, *digests)[:12]}"
    if not _is_converted(target):
        if not _converting.get():
            raise Unconverted(path)
        # Several processes need it at once where a first run starts many: one converts, the others wait for it.
        with locks.once(target, "MIXPREC_CACHE"):
            if not _is_converted(target):
                if target.is_dir():
                    console.print(f"{target}: was changed or damaged since it was written; converted again")
                    artifacts.remove(target)
                _convert(path, files[0], target)
    return target


def _is_converted(target: Path) -> bool:
    """Whether a conversion is in the cache, byte for byte as it was written."""
    try:
        known = artifacts.read_object(target / _CHECKSUMS)
        return all(artifacts.sha256_file(target / name) == digest for name, digest in known.items())
    except UserError:  # a file is gone, or the checksums are damaged
        return False


def _convert(path: Path, first: Path, target: Path) -> None:
    """Write the GGUF model ``path``, whose first part is ``first``, as a safetensors checkpoint."""
    source = {"gguf_file": first.name}
    console.print(f"converting {path.name} to safetensors, once")
    publish = artifacts.atomic_path(target, first=True, place="MIXPREC_CACHE")
    # The GGUF reader's own bar listens to no setting of transformers.
    with publish as folder, quiet(), redirect_stderr(io.StringIO()), parts.one_reader():
        try:
            reader, config = _checked(path, first)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
            tokenizer_in.complete(tokenizer, reader, path)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                **source,
                config=config,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float16,
            )
        except UserError:
            raise
        except Exception as problem:  # a damaged file breaks the reader in many ways
            raise UserError(f"{path}: transformers can't read this GGUF file ({first_line(problem)})") from None
        _unmark(model)
        # float16, not bfloat16: a Q4_1 value is scale * code + minimum with a float16 scale and minimum, and
        # three more bits of mantissa keep it closer. Each tensor is rounded as it is read: never are all in float32.
        model.save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            artifacts.share(file)
        tokenizer_in.save(tokenizer, folder, path)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        digests = {file.relative_to(folder).as_posix(): artifacts.sha256_file(file) for file in files}
        artifacts.write_json(folder / _CHECKSUMS, digests)


def _unmark(model: Any) -> None:
    """transformers still marks a dequantized model as quantized, which forbids saving."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
