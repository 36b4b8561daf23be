"""Loading a model whole, for inference."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerBase

from mixprec.checkpoint import integrity
from mixprec.checkpoint.opening import open_checkpoint
from mixprec.checkpoint.reader import Checkpoint
from mixprec.core.devices import check_device, dtype_of
from mixprec.core.errors import UserError
from mixprec.core.progress import console
from mixprec.core.upstream import first_line, quiet
from mixprec.models.complete import expected
from mixprec.models.encoding import Encoder
from mixprec.models.locate import fetch
from mixprec.models.source import check_computable
from mixprec.models.tokenizer import load_encoder
from mixprec.models.weights import linears_of


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
        return linears_of(self.model)

    @property
    def context(self) -> int:
        """Tokens that the model was trained to see at once."""
        return int(self.model.config.max_position_embeddings)


def check_model(model_id: str, revision: str | None = None) -> None:
    """Raises UserError for what ``load_model`` refuses by its files' names and headers, and for its tokenizer."""
    opened = _opened(fetch(model_id, revision))
    load_encoder(model_id, revision, opened.shapes.vocab_size)


def load_model(
    model_id: str, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None
) -> LoadedModel:
    """Load weights and tokenizer for inference.

    ``device`` is a torch device, or ``auto`` to spread the model over the GPUs there are (accelerate).
    Raises UserError for an unknown ``dtype``, broken or missing files, weights that are missing, of another shape,
    NaN or infinite, and for tokenizers of another model or without character offsets (spans need them).
    """
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

    Raises UserError where files that mixprec wrote are damaged, and as open_checkpoint does.
    """
    integrity.verify(folder)
    try:
        opened = open_checkpoint(folder)
        if opened.container != "gguf":
            for name in expected(opened.shapes).keys() & opened.source.tensors.keys():
                check_computable(opened.source, name)
    except UserError as problem:
        raise UserError(f"model.id: {str(problem).removeprefix('model.id: ')}") from None
    return opened
