"""Configurations as transformers' objects, and what it builds of them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
import transformers
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PretrainedConfig,
)

from mixprec.core.errors import UserError
from mixprec.core.upstream import first_line, quiet
from mixprec.models.experts import unstack

#: Keys of configurations that say nothing of what a model is made of.
_NO_STRUCTURE: Final = frozenset(
    ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "use_cache",
     "quantization_config")
)  # fmt: skip


def class_of(config: PretrainedConfig) -> type[Any] | None:
    """The class that transformers builds for text out of a configuration, a decoder inside a multimodal model too."""
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    # The text model of a wrapper wants another configuration.
    for mapping in mappings if config.get_text_config(decoder=True) is config else reversed(mappings):
        if type(config) in mapping:
            found: Any = mapping[type(config)]
            chosen: type[Any] = found[0] if isinstance(found, tuple) else found
            return chosen
    return None


def empty(config: PretrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """The model of a configuration without weights, in evaluation mode, its experts as modules; buffers lie where the
    context says. It attends as transformers lets it, whatever a running model of this configuration was set to."""
    kind = class_of(config)
    assert kind is not None  # check_architecture saw to it
    config = copy.deepcopy(config)
    for each in (config, config.get_text_config(decoder=True)):
        each._attn_implementation_internal = None
    model = kind._from_config(config, **({} if dtype is None else {"dtype": dtype})).eval()
    unstack(model)
    return model


@contextmanager
def without_weights() -> Iterator[None]:
    """Models that are built inside have their parameters on meta and their buffers, which no file may hold, on the CPU.

    Parameters take no memory on the way there, the stacked experts of large models either.
    """
    with init_empty_weights(include_buffers=False), _RoomOnMeta():
        yield


class _RoomOnMeta(TorchFunctionMode):
    """Room for values is on meta: what a model computes its buffers by isn't."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def structure_of(config: PretrainedConfig) -> str:
    """What a configuration says of what a model is made of: the same text for models that differ in weights alone."""
    said = {name: value for name, value in config.to_dict().items() if name not in _NO_STRUCTURE}
    return json.dumps(said, sort_keys=True, default=str)


def as_config(config: PretrainedConfig | Mapping[str, Any], where: str) -> PretrainedConfig:
    """A configuration as transformers' object. Raises UserError for what it refuses, and for no text decoder."""
    if isinstance(config, PretrainedConfig):
        made = config
    else:
        said = {key: _numbers(value) for key, value in config.items()}
        kind = said.pop("model_type", None)
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise UserError(f"{where}: architecture {kind!r} is not known to transformers {transformers.__version__}")
        try:
            with quiet():
                made = CONFIG_MAPPING[kind].from_dict(said)
        except Exception as problem:  # values of wrong types break it in many ways
            raise UserError(f"{where}: no usable configuration ({first_line(problem)})") from None
    if made.is_encoder_decoder:
        raise UserError(f"{where}: {made.model_type} is an encoder-decoder; only decoders are compressed")
    if class_of(made) is None:
        raise UserError(f"{where}: transformers builds no language model of the architecture {made.model_type!r}")
    return made


def _numbers(value: Any) -> Any:
    """What transformers writes into config.json for numbers that JSON has not, read back: {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        only = value.get("__float__")
        return (
            float(only)
            if only is not None and len(value) == 1
            else {key: _numbers(each) for key, each in value.items()}
        )
    return [_numbers(each) for each in value] if isinstance(value, list) else value
