"""The map's names looked up in a model of torch: its modules and their weights."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from mixprec.models.decoder import Decoder, Linear
from mixprec.models.maps import decoder_of

_maps: weakref.WeakKeyDictionary[Any, Decoder] = weakref.WeakKeyDictionary()


def map_in(model: Any) -> Decoder:
    """The map of a model in memory, made once."""
    found = _maps.get(model)
    if found is None:
        found = _maps[model] = decoder_of(model.config)
    return found


def weight_of(block: nn.Module, linear: Linear) -> Tensor:
    """The matrix (out, in) of a linear of ``block``, so that what is copied into it is in the model."""
    return block.get_parameter(linear.parameter)


def module_of(block: nn.Module, linear: Linear) -> nn.Module:
    """The module of ``block`` that receives the linear's input."""
    return block.get_submodule(linear.module)


def blocks_of(model: Any) -> nn.ModuleList:
    """A loaded model's list of decoder blocks."""
    return cast(nn.ModuleList, model.get_submodule(map_in(model).blocks_path))


def body_of(model: Any) -> Any:
    """A loaded model's module that takes tokens through the blocks and the norm behind them, without a head."""
    return model.get_submodule(map_in(model).body)


def through(block: nn.Module, hidden: Tensor, context: Mapping[str, Any]) -> Tensor:
    """What a block makes of hidden states (batch, tokens, hidden), with what the model hands it besides."""
    output = block(hidden, **context)
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def norm_of(model: Any) -> nn.Module:
    """The norm behind a loaded model's last block."""
    found: nn.Module = model.get_submodule(map_in(model).norm)
    return found


def linears_of(model: Any) -> dict[str, nn.Linear]:
    """Address -> linear module of a loaded model, in order."""
    return {
        linear.address: cast(nn.Linear, module_of(block, linear))
        for block, known in zip(blocks_of(model), map_in(model).blocks, strict=True)
        for linear in known.linears
    }


def outputs_of(model: Any) -> dict[str, tuple[nn.Module, int]]:
    """Embedding, norms of hidden states and head of a loaded model, by full name, with the widths of their outputs."""
    return {name: (model.get_submodule(name), width) for name, width in map_in(model).outputs.items()}
