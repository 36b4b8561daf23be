"""Loading a model whole, for inference."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from mixprec.checkpoint.reader import Checkpoint
from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models import tensors
from mixprec.models.discover.building import class_of, empty, without_weights
from mixprec.models.encoding import Encoder
from mixprec.models.experts import unstack
from mixprec.models.head import Head
from mixprec.models.maps import names_of
from mixprec.models.sizes import context_of
from mixprec.models.weights import body_of, linears_of


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
        return context_of(self.model.config)


def check_computable(opened: Checkpoint) -> None:
    """Raises UserError for weights of a type that can't be computed with."""
    if opened.container != "gguf":
        layouts = opened.layouts
        packed = {each.weight_name for each in opened.inventory.matrices if layouts[each.address].container != "dense"}
        for name in opened.inventory.shapes.keys() & opened.source.tensors.keys() - packed:
            tensors.check_computable(opened.source, name)


def _loaded(config: PretrainedConfig, opened: Checkpoint, dtype: torch.dtype, device: str, packed: bool) -> Any:
    """The model as transformers loads it."""
    loader = class_of(config)
    assert loader is not None  # a checkpoint is opened by its configuration
    return loader.from_pretrained(
        None if packed else str(opened.path),
        config=config,
        state_dict=opened.state(dtype) if packed else None,
        dtype=dtype,
        device_map=None if device == "cpu" else device,
        # Other files are pickles, which can run code.
        use_safetensors=True,
        trust_remote_code=False,
    )


def _filled(config: PretrainedConfig, opened: Checkpoint, dtype: torch.dtype) -> Any:
    """The model with what is unpacked, whose experts transformers doesn't know one by one."""
    with without_weights():
        model = empty(config, dtype)
    state, decoder = opened.state(dtype), opened.inventory
    if decoder.tied:
        state[decoder.head_weight] = state[decoder.embedding_weight]
    own = model.state_dict()
    model.load_state_dict({name: state[name].to(each.dtype) for name, each in own.items()}, assign=True)
    if decoder.tied:
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    return model


@torch.no_grad()
def _check_head(name: str, model: Any) -> None:
    """Logits are what norm and head make of the blocks' output, as everything here takes them to be.

    Raises UserError where they aren't, in an architecture that no table describes.
    """
    tokens = torch.arange(2, device=model.get_input_embeddings().weight.device)[None]
    theirs = model(input_ids=tokens, use_cache=False).logits
    ours = Head.of(model)(body_of(model)(input_ids=tokens, use_cache=False).last_hidden_state)
    if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-3 * float(theirs.abs().max())):
        raise UserError(
            f"model.id: {name}: {type(model).__name__} makes its logits in a way that is not known here, not by a norm "
            "and a linear head behind its blocks"
        )


def load_whole(name: str, opened: Checkpoint, encoder: Encoder, dtype: torch.dtype, device: str) -> LoadedModel:
    """The weights of a checkpoint (``Model.load``); ``name`` stands in errors.

    ``device`` is a torch device, or ``auto`` to spread the model over the GPUs there are (accelerate).
    Raises UserError for files that transformers can't load, and weights that are NaN or infinite.
    """
    packed = opened.container != "dense" or opened.widened
    config = copy.deepcopy(opened.shapes)
    if packed and getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    try:
        with quiet():
            if packed and names_of(config) is not None:
                model = _filled(config, opened, dtype).to("cpu" if device == "auto" else device)
            else:
                model = _loaded(config, opened, dtype, device, packed)
    except UserError:
        raise
    except Exception as problem:  # safetensors and transformers raise many kinds; all mean a bad checkpoint
        raise UserError(f"model.id: {name}: can't be loaded from {opened.path} ({first_line(problem)})") from None
    for key, parameter in model.named_parameters():
        if parameter.is_meta:
            raise UserError(
                f"model.id: {name}: does not fit into the GPUs there are; use cpu, float16 or bfloat16, "
                "or for attribution stream the weights: mixprec attribute --stream"
            )
        if not torch.isfinite(parameter).all():
            raise UserError(f"model.id: {name}: {key} holds NaN or infinite values; the checkpoint is broken")
        parameter.requires_grad_(False)
    unstack(model)
    if names_of(config) is not None:
        _check_head(name, model.eval())
    return LoadedModel(model.eval(), encoder, notes=opened.notes)
