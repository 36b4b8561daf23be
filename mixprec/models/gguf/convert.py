"""What transformers makes of a GGUF model: its configuration, and a safetensors checkpoint."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PretrainedConfig

from mixprec.core import artifacts, publish
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.core.upstream import first_line, quiet
from mixprec.models.gguf import mixtures, parts
from mixprec.models.gguf import tokenizer as tokenizer_in
from mixprec.models.gguf.complete import check_tensors
from mixprec.models.gguf.config import check_rope, config_in
from mixprec.models.maps import decoder_of


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
    if mixtures.is_mixture(reader):
        raise UserError(f"{path}: a mixture of experts in GGUF is inspected and compared, not run; give the original")
    config = config_in(path, reader)
    check_tensors(path, reader, decoder_of(config))
    check_rope(path, reader, config)
    return reader, config


def convert(path: Path, first: Path, target: Path, checksums: str) -> None:
    """Write the GGUF model ``path``, whose first part is ``first``, as a safetensors checkpoint.

    ``checksums``: name of the file that the others' go into.
    """
    source = {"gguf_file": first.name}
    console.print(f"converting {path.name} to safetensors, once")
    writing = publish.atomic_path(target, first=True, place="MIXPREC_CACHE")
    # The GGUF reader's own bar listens to no setting of transformers.
    with writing as folder, quiet(), redirect_stderr(io.StringIO()), parts.one_reader():
        try:
            reader, config = _checked(path, first)
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **source, trust_remote_code=False)
            tokenizer_in.complete(tokenizer, reader, path)
            model = AutoModelForCausalLM.from_pretrained(
                path.parent,
                **source,
                trust_remote_code=False,
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
            publish.share(file)
        tokenizer_in.save(tokenizer, folder, path)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        digests = {file.relative_to(folder).as_posix(): artifacts.sha256_file(file) for file in files}
        artifacts.write_json(folder / checksums, digests)


def _unmark(model: Any) -> None:
    """transformers still marks a dequantized model as quantized, which forbids saving."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
