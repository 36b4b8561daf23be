"""Which linears of a block receive the same tensor, seen by running a tiny copy of the model: what a table must say."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from mixprec.models.weights import blocks_of

#: Sizes of the copy. What else the configuration says stays: it makes the structure.
_TINY: Final = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 8,
    "pad_token_id": None,
}


def observed_groups(config: PretrainedConfig) -> list[tuple[str, ...]]:
    """Paths of the linears of a model's first block that receive one tensor, in the order in which they run."""
    tiny = copy.deepcopy(config)
    for key, value in _TINY.items():
        setattr(tiny, key, value)
    if getattr(tiny, "layer_types", None):
        tiny.layer_types = tiny.layer_types[:1]
    with torch.random.fork_rng(devices=()):
        model: Any = AutoModelForCausalLM.from_config(tiny).eval()
    block = blocks_of(model)[0]
    groups: list[tuple[Tensor, list[str]]] = []

    def see(path: str, received: Tensor) -> None:
        # The tensors are held, so that no other one takes the place of a freed one.
        found = next((paths for tensor, paths in groups if tensor is received), None)
        if found is None:
            groups.append((received, found := []))
        found.append(path)

    with ExitStack() as stack, torch.no_grad():
        for path, module in block.named_modules():
            if isinstance(module, nn.Linear):
                hook = module.register_forward_pre_hook(lambda _module, inputs, path=path: see(path, inputs[0]))
                stack.callback(hook.remove)
        model(torch.arange(3)[None])
    return [tuple(paths) for _, paths in groups]
